//! Who may call what: one table, every call in it.
//!
//! Pure. A call that is not in the table does not compile; a role that is not
//! named in a row is refused. Nodes call as themselves, never for another:
//! that is asked where a call names a node.

use warren_proto::v1::open_stream::Kind as StreamKind;

/// What a caller is, as far as this table is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// On the local socket: whoever may open it owns the machine.
    Local,
    Admin,
    Deploy,
    Read,
    /// A node with a manager's certificate that the state holds for a manager.
    Manager,
    /// A node.
    Worker,
    /// Over TLS, without a certificate or token.
    Nobody,
}

/// Every call of every service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rpc {
    GetInfo,
    CreateService,
    UpdateService,
    RemoveServices,
    ListServices,
    ListTasks,
    ListNodes,
    Watch,
    WaitService,
    Stream,
    StopNode,
    UpdateNode,
    RemoveNode,
    LeaveCluster,
    GetCluster,
    UpdateCluster,
    GetJoinToken,
    RotateAuthority,
    RotateDataKey,
    SetLock,
    Unlock,
    Backup,
    CreateOperator,
    RemoveOperator,
    ListOperators,
    ListAudit,
    SetLogLevel,
    CreateNetwork,
    RemoveNetworks,
    ListNetworks,
    CreatePolicy,
    RemovePolicies,
    ListPolicies,
    Explain,
    ListRevisions,
    RollBackService,
    HoldUpdate,
    RunJob,
    StopJob,
    SuspendJob,
    ControlTask,
    Simulate,
    Join,
    Renew,
    Session,
    Tunnel,
    Parted,
}

impl Rpc {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::GetInfo => "GetInfo",
            Self::CreateService => "CreateService",
            Self::UpdateService => "UpdateService",
            Self::RemoveServices => "RemoveServices",
            Self::ListServices => "ListServices",
            Self::ListTasks => "ListTasks",
            Self::ListNodes => "ListNodes",
            Self::Watch => "Watch",
            Self::WaitService => "WaitService",
            Self::Stream => "Stream",
            Self::StopNode => "StopNode",
            Self::UpdateNode => "UpdateNode",
            Self::RemoveNode => "RemoveNode",
            Self::LeaveCluster => "LeaveCluster",
            Self::GetCluster => "GetCluster",
            Self::UpdateCluster => "UpdateCluster",
            Self::GetJoinToken => "GetJoinToken",
            Self::RotateAuthority => "RotateAuthority",
            Self::RotateDataKey => "RotateDataKey",
            Self::SetLock => "SetLock",
            Self::Unlock => "Unlock",
            Self::Backup => "Backup",
            Self::CreateOperator => "CreateOperator",
            Self::RemoveOperator => "RemoveOperator",
            Self::ListOperators => "ListOperators",
            Self::ListAudit => "ListAudit",
            Self::SetLogLevel => "SetLogLevel",
            Self::CreateNetwork => "CreateNetwork",
            Self::RemoveNetworks => "RemoveNetworks",
            Self::ListNetworks => "ListNetworks",
            Self::CreatePolicy => "CreatePolicy",
            Self::RemovePolicies => "RemovePolicies",
            Self::ListPolicies => "ListPolicies",
            Self::Explain => "Explain",
            Self::ListRevisions => "ListRevisions",
            Self::RollBackService => "RollBackService",
            Self::HoldUpdate => "HoldUpdate",
            Self::RunJob => "RunJob",
            Self::StopJob => "StopJob",
            Self::SuspendJob => "SuspendJob",
            Self::ControlTask => "ControlTask",
            Self::Simulate => "Simulate",
            Self::Join => "Join",
            Self::Renew => "Renew",
            Self::Session => "Session",
            Self::Tunnel => "Tunnel",
            Self::Parted => "Parted",
        }
    }
}

/// The table.
pub(crate) fn may(role: Role, rpc: Rpc) -> bool {
    use Role::{Admin, Deploy, Local, Manager, Nobody, Read, Worker};
    let allowed: &[Role] = match rpc {
        // A manager asks others whether they are there.
        Rpc::GetInfo => &[Local, Admin, Deploy, Read, Manager],
        Rpc::ListServices
        | Rpc::ListTasks
        | Rpc::ListNodes
        | Rpc::ListNetworks
        | Rpc::ListPolicies
        | Rpc::Explain
        | Rpc::Simulate
        | Rpc::ListRevisions
        | Rpc::Watch
        | Rpc::WaitService
        | Rpc::GetCluster => &[Local, Admin, Deploy, Read],
        // What is in a stream is asked once more: `may_stream`. A manager passes on those of others.
        Rpc::Stream => &[Local, Admin, Deploy, Read, Manager],
        Rpc::CreateService
        | Rpc::UpdateService
        | Rpc::RemoveServices
        | Rpc::RollBackService
        | Rpc::HoldUpdate
        | Rpc::RunJob
        | Rpc::StopJob
        | Rpc::SuspendJob
        | Rpc::ControlTask
        | Rpc::CreateNetwork
        | Rpc::RemoveNetworks
        | Rpc::CreatePolicy
        | Rpc::RemovePolicies => &[Local, Admin, Deploy],
        Rpc::StopNode
        | Rpc::UpdateNode
        | Rpc::RemoveNode
        | Rpc::UpdateCluster
        | Rpc::GetJoinToken
        | Rpc::RotateAuthority
        | Rpc::SetLock
        | Rpc::Backup
        | Rpc::CreateOperator
        | Rpc::RemoveOperator
        | Rpc::ListOperators
        | Rpc::ListAudit
        | Rpc::SetLogLevel => &[Local, Admin],
        // One manager asks all others.
        Rpc::RotateDataKey => &[Local, Admin, Manager],
        // From afar "this node" would be whichever manager answers; a node means itself.
        Rpc::LeaveCluster => &[Local, Manager, Worker],
        Rpc::Unlock => &[Local],
        // The token decides.
        Rpc::Join => &[Admin, Deploy, Read, Manager, Worker, Nobody],
        Rpc::Renew | Rpc::Session | Rpc::Tunnel | Rpc::Parted => &[Manager, Worker],
    };
    allowed.contains(&role)
}

/// Which streams a role may open. Managers pass on what was allowed where it came in.
pub(crate) fn may_stream(role: Role, kind: &StreamKind) -> bool {
    use Role::{Admin, Deploy, Local, Manager, Nobody, Read, Worker};
    let allowed: &[Role] = match kind {
        StreamKind::Logs(_)
        | StreamKind::ImageList(_)
        | StreamKind::VolumeList(_)
        | StreamKind::Doctor(_)
        | StreamKind::CountPolicies(_) => &[Local, Admin, Deploy, Read, Manager],
        StreamKind::Exec(_)
        | StreamKind::ImagePull(_)
        | StreamKind::ImageLoad(_)
        | StreamKind::ImageImport(_)
        | StreamKind::ImageRemove(_)
        | StreamKind::VolumeRemove(_)
        | StreamKind::ImageSave(_)
        | StreamKind::ImagePush(_)
        | StreamKind::Check(_) => &[Local, Admin, Deploy, Manager],
        // Asked for by a call that is recorded.
        StreamKind::ControlTask(_) => &[Manager],
        StreamKind::RegistryLogin(_) | StreamKind::RotateKey(_) | StreamKind::ImageFsck(_) => {
            &[Local, Admin, Manager]
        }
    };
    debug_assert!(!allowed.contains(&Worker) && !allowed.contains(&Nobody));
    allowed.contains(&role)
}

#[cfg(test)]
mod tests {
    use warren_proto::v1;

    use super::*;

    const ROLES: [(Role, char); 7] = [
        (Role::Local, 'L'),
        (Role::Admin, 'A'),
        (Role::Deploy, 'D'),
        (Role::Read, 'R'),
        (Role::Manager, 'm'),
        (Role::Worker, 'w'),
        (Role::Nobody, 'n'),
    ];

    /// One letter for each role that may.
    fn letters(may: impl Fn(Role) -> bool) -> String {
        ROLES.iter().filter(|(role, _)| may(*role)).map(|(_, letter)| letter).collect()
    }

    #[test]
    fn calls() {
        let table = "
            GetInfo LADRm        CreateService LAD     UpdateService LAD    RemoveServices LAD
            ListServices LADR    ListTasks LADR        ListNodes LADR       Watch LADR
            WaitService LADR     Stream LADRm          StopNode LA          UpdateNode LA
            RemoveNode LA        LeaveCluster Lmw      GetCluster LADR      UpdateCluster LA
            GetJoinToken LA      RotateAuthority LA    RotateDataKey LAm    SetLock LA
            Unlock L             Backup LA             CreateOperator LA    RemoveOperator LA
            ListOperators LA     ListAudit LA          SetLogLevel LA       CreateNetwork LAD
            RemoveNetworks LAD   ListNetworks LADR     CreatePolicy LAD     RemovePolicies LAD
            ListPolicies LADR    Explain LADR          ListRevisions LADR   RollBackService LAD
            HoldUpdate LAD       RunJob LAD            StopJob LAD          SuspendJob LAD
            ControlTask LAD      Simulate LADR         Join ADRmwn
            Renew mw             Session mw            Tunnel mw";
        let all = [
            Rpc::GetInfo,
            Rpc::CreateService,
            Rpc::UpdateService,
            Rpc::RemoveServices,
            Rpc::ListServices,
            Rpc::ListTasks,
            Rpc::ListNodes,
            Rpc::Watch,
            Rpc::WaitService,
            Rpc::Stream,
            Rpc::StopNode,
            Rpc::UpdateNode,
            Rpc::RemoveNode,
            Rpc::LeaveCluster,
            Rpc::GetCluster,
            Rpc::UpdateCluster,
            Rpc::GetJoinToken,
            Rpc::RotateAuthority,
            Rpc::RotateDataKey,
            Rpc::SetLock,
            Rpc::Unlock,
            Rpc::Backup,
            Rpc::CreateOperator,
            Rpc::RemoveOperator,
            Rpc::ListOperators,
            Rpc::ListAudit,
            Rpc::SetLogLevel,
            Rpc::CreateNetwork,
            Rpc::RemoveNetworks,
            Rpc::ListNetworks,
            Rpc::CreatePolicy,
            Rpc::RemovePolicies,
            Rpc::ListPolicies,
            Rpc::Explain,
            Rpc::ListRevisions,
            Rpc::RollBackService,
            Rpc::HoldUpdate,
            Rpc::RunJob,
            Rpc::StopJob,
            Rpc::SuspendJob,
            Rpc::ControlTask,
            Rpc::Simulate,
            Rpc::Join,
            Rpc::Renew,
            Rpc::Session,
            Rpc::Tunnel,
        ];
        // The last one of the enum: with it the list above is whole.
        assert_eq!(all.len(), Rpc::Tunnel as usize + 1);
        let got = all.map(|rpc| format!("{} {}", rpc.as_str(), letters(|role| may(role, rpc))));
        let words: Vec<&str> = table.split_whitespace().collect();
        assert_eq!(got.to_vec(), words.chunks(2).map(|row| row.join(" ")).collect::<Vec<_>>());
    }

    #[test]
    fn streams() {
        let rows = [
            (StreamKind::Exec(v1::Exec::default()), "LADm"),
            (StreamKind::Logs(v1::Logs::default()), "LADRm"),
            (StreamKind::ImagePull(v1::ImagePull::default()), "LADm"),
            (StreamKind::ImageLoad(v1::ImageLoad::default()), "LADm"),
            (StreamKind::ImageImport(v1::ImageImport::default()), "LADm"),
            (StreamKind::ImageList(v1::ImageList::default()), "LADRm"),
            (StreamKind::ImageRemove(v1::ImageRemove::default()), "LADm"),
            (StreamKind::VolumeList(v1::VolumeList::default()), "LADRm"),
            (StreamKind::VolumeRemove(v1::VolumeRemove::default()), "LADm"),
            (StreamKind::ImageSave(v1::ImageSave::default()), "LADm"),
            (StreamKind::ImagePush(v1::ImagePush::default()), "LADm"),
            (StreamKind::ImageFsck(v1::ImageFsck::default()), "LAm"),
            (StreamKind::RegistryLogin(v1::RegistryLogin::default()), "LAm"),
            (StreamKind::Check(v1::Check::default()), "LADm"),
            (StreamKind::Doctor(v1::Doctor::default()), "LADRm"),
            (StreamKind::CountPolicies(v1::CountPolicies::default()), "LADRm"),
            (StreamKind::RotateKey(v1::RotateKey::default()), "LAm"),
            (StreamKind::ControlTask(v1::ControlTask::default()), "m"),
        ];
        for (kind, expected) in rows {
            assert_eq!(letters(|role| may_stream(role, &kind)), expected, "{kind:?}");
        }
    }
}
