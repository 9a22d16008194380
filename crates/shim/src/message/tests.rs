//! Every message comes back as it was written, and no bytes make the reader panic.

use proptest::prelude::*;

use super::*;

const DEVICE: Device<'_> = Device {
    is_block: true,
    major: 8,
    minor: 1,
    mode: 0o660,
    user: 7,
    group: 9,
    path: c"/dev/disk",
};

const ULIMIT: Ulimit = Ulimit { resource: 7, soft: 1024, hard: u64::MAX };

fn sample() -> Vec<u8> {
    let mut builder = Builder::new(&Settings {
        flags: flags::READ_ONLY | flags::NETWORK_NAMESPACE,
        kept: 2,
        capabilities: 0xa804_25fb,
        log_max_bytes: 1 << 20,
        log_max_files: 3,
        rows: 24,
        columns: 80,
    });
    builder.text(Tag::Arg, b"sh").unwrap();
    builder.text(Tag::Arg, b"").unwrap();
    builder.mount(MountKind::Bind, true, b"/src", b"/dst").unwrap();
    let tmpfs = MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o1777, exec: true };
    builder.mount(tmpfs, false, b"", b"/tmp").unwrap();
    builder.device(&DEVICE);
    builder.ulimit(ULIMIT);
    builder.file(0o600, b"/etc/hosts", b"127.0.0.1\0localhost").unwrap();
    builder.pair(Tag::CgroupView, b"memory", b"/sys/fs/cgroup/memory/x").unwrap();
    builder.bytes(Tag::Seccomp, &[7; 16]);
    builder.finish().unwrap()
}

#[test]
fn round_trip() {
    let bytes = sample();
    let message = Message::parse(&bytes).unwrap();
    assert!(message.settings().has(flags::READ_ONLY) && !message.settings().has(flags::TERMINAL));
    assert_eq!((message.settings().kept, message.settings().columns), (2, 80));
    assert_eq!(message.texts(Tag::Arg).collect::<Vec<_>>(), [c"sh", c""]);
    let mounts = message.mounts().collect::<Vec<_>>();
    let bind = Mount { kind: MountKind::Bind, read_only: true, source: c"/src", target: c"/dst" };
    assert_eq!(mounts[0], bind);
    assert_eq!(mounts[1].kind, MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o1777, exec: true });
    assert_eq!(message.devices().collect::<Vec<_>>(), [DEVICE]);
    assert_eq!(message.ulimits().collect::<Vec<_>>(), [ULIMIT]);
    let file = message.files().next().unwrap();
    assert_eq!(
        (file.mode, file.target, file.data),
        (0o600, c"/etc/hosts", &b"127.0.0.1\0localhost"[..])
    );
    let view = Pair { first: c"memory", second: c"/sys/fs/cgroup/memory/x" };
    assert_eq!(message.pairs(Tag::CgroupView).collect::<Vec<_>>(), [view]);
    assert_eq!(message.bytes(Tag::Seccomp), Some(&[7; 16][..]));
    assert_eq!(message.text(Tag::Cwd), None);
}

#[test]
fn refusals() {
    let good = sample();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, expected) in [
        (Vec::new(), Malformed::Header),
        (changed(0, 0), Malformed::Header),
        (changed(4, 9), Malformed::Version(9)),
        (good[..good.len() - 8].to_vec(), Malformed::Length),
        ([good.as_slice(), &[0; 8]].concat(), Malformed::Length),
        (changed(HEADER, 200), Malformed::Tag(200)),
        (changed(HEADER + 4, 3), Malformed::Record(Tag::Settings)),
        (changed(HEADER + 6, 0xff), Malformed::Length),
    ] {
        assert_eq!(Message::parse(&bytes).unwrap_err(), expected);
    }
    let mut empty = vec![0; HEADER];
    empty[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    empty[4..8].copy_from_slice(&VERSION.to_le_bytes());
    empty[8] = 16;
    assert_eq!(Message::parse(&empty).unwrap_err(), Malformed::Missing(Tag::Settings));
    let mut builder = Builder::new(&Settings::default());
    assert_eq!(builder.text(Tag::Arg, b"a\0b"), Err(HasNul));
    builder.bytes(Tag::Arg, b"unended");
    let bytes = builder.finish().unwrap();
    assert_eq!(Message::parse(&bytes).unwrap_err(), Malformed::Record(Tag::Arg));
    let mut builder = Builder::new(&Settings::default());
    builder.bytes(Tag::Env, &vec![1; MESSAGE_MAX]);
    assert_eq!(builder.finish(), None);
}

#[test]
fn datagrams() {
    for operation in Operation::ALL {
        let request = Request { operation: *operation, argument: -7 };
        assert_eq!(Request::decode(&request.encode()), Some(request));
    }
    for reply in [
        Reply::Started { pid: 1, at_ns: u64::MAX },
        Reply::Failed { step: Step::Overlay, errno: 2, index: 3 },
        Reply::Terminal,
        Reply::Exited { code: 137 },
        Reply::Signalled { errno: 0 },
    ] {
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
    }
    for step in Step::ALL {
        assert_eq!(Step::from_number(step.number()), Some(*step));
    }
    for tag in Tag::ALL {
        assert_eq!(Tag::from_number(tag.number()), Some(*tag));
    }
}

fn read_everything(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    for tag in Tag::ALL {
        message.all(*tag).for_each(drop);
        message.texts(*tag).for_each(drop);
        message.pairs(*tag).for_each(drop);
    }
    message.mounts().for_each(drop);
    message.files().for_each(drop);
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_everything(&bytes);
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
        let _ = crate::record::Run::decode(&bytes);
        let _ = crate::record::Exit::decode(&bytes);
        let _ = crate::line::parse(&bytes);
        let _ = crate::account::Passwd::parse(&bytes);
        let _ = crate::account::Group::parse(&bytes);
    }

    #[test]
    fn damaged_messages(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, byte) in changes {
            // The header stays good, so that damage reaches the records.
            let at = HEADER + at % (bytes.len() - HEADER);
            bytes[at] = byte;
        }
        read_everything(&bytes);
    }

    #[test]
    fn times(at_ns in 0..253_402_300_799_000_000_000_u128) {
        let at_ns = u64::try_from(at_ns).unwrap_or(u64::MAX);
        let line = crate::line::prefix(at_ns, crate::line::Stream::Stdout);
        prop_assert_eq!(crate::line::parse(&line).unwrap().0, at_ns);
    }
}
