//! What goes wrong, one after the other and at the same time, and how each
//! ends. What is still wrong when trouble is over, [`heal`] ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::{Code, Status};
use warren_base::rng::Rng;
use warren_model::node::Availability;
use warren_proto::v1;

use super::call::{self, Ask};
use super::host::Host;
use super::net::WORKERS;
use super::plan::Fault;
use super::world::{World, held};
use crate::machine::pick;

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// Trouble until the script's time is over.
pub(crate) async fn trouble(world: Arc<World>) {
    let mut under_way = JoinSet::new();
    let end = world.now_ms() + world.script.trouble_ms;
    while world.now_ms() < end {
        sleep(100 + world.rng.below(world.script.pause_ms)).await;
        let fault = world.script.draw(world.rng.as_ref());
        world.note(|| format!("fault: {fault:?}"));
        world.count(|counts| counts.faults += 1);
        under_way.spawn(happen(Arc::clone(&world), fault));
        while under_way.try_join_next().is_some() {}
    }
    under_way.shutdown().await;
}

/// Everything that can be mended is.
pub(crate) fn heal(world: &Arc<World>) {
    world.note(|| "trouble is over".to_owned());
    world.net.heal();
    for host in world.hosts() {
        if host.is_lost() {
            continue;
        }
        if host.is_off() {
            host.kill(world, true);
        }
        if let Some(disk) = host.disk() {
            disk.fill(false);
        }
        host.full.store(false, Ordering::Relaxed);
        host.boot(world);
    }
}

fn any(world: &World, fits: impl Fn(&Host) -> bool) -> Option<Arc<Host>> {
    let hosts: Vec<_> = world.hosts().into_iter().filter(|h| !h.is_lost() && fits(h)).collect();
    pick(world.rng.as_ref(), hosts.len()).map(|at| Arc::clone(&hosts[at]))
}

fn manager(world: &World) -> Option<Arc<Host>> {
    any(world, |host| host.number().is_some())
}

fn worker(world: &World) -> Option<Arc<Host>> {
    any(world, |host| host.number().is_none())
}

async fn happen(world: Arc<World>, fault: Fault) {
    let happened = match fault {
        Fault::KillManager => kill(&world, manager(&world), false, 1_500).await,
        Fault::PowerManager => kill(&world, manager(&world), true, 3_000).await,
        // Its containers are kept from going on without it for long: nobody else could stop them.
        Fault::KillWorker => kill(&world, worker(&world), false, 400).await,
        Fault::PowerWorker => kill(&world, worker(&world), true, 6_000).await,
        Fault::TearManager => tear(&world).await,
        Fault::PowerManagers => power_managers(&world).await,
        Fault::FullDisk => full_disk(&world).await,
        Fault::LyingDisk => lying_disk(&world).await,
        Fault::StopHost => stop(&world),
        Fault::CutHosts => cut_group(&world).await,
        Fault::CutOneWay => cut_one_way(&world).await,
        Fault::CutWorker => cut_worker(&world).await,
        Fault::SlowLink => slow_link(&world).await,
        Fault::Loss => loss(&world).await,
        Fault::CrashContainers => crash_containers(&world),
        Fault::Promote => promote(&world).await,
        Fault::Demote => demote(&world).await,
        Fault::Drain => drain(&world).await,
        Fault::Lie => lie(&world),
        Fault::SetClock => set_clock(&world),
    };
    world.trace(happened.is_some());
}

async fn kill(
    world: &Arc<World>,
    host: Option<Arc<Host>>,
    power: bool,
    down_ms: u64,
) -> Option<()> {
    let host = host?;
    host.kill(world, power);
    sleep(20 + world.rng.below(down_ms)).await;
    host.boot(world);
    Some(())
}

async fn tear(world: &Arc<World>) -> Option<()> {
    const NOTICED_MS: u64 = 300;
    let host = manager(world)?;
    host.cut_power_soon(world.rng.below(16));
    for _ in 0..NOTICED_MS {
        if host.is_off() {
            break;
        }
        sleep(1).await;
    }
    host.kill(world, true);
    sleep(20 + world.rng.below(2_000)).await;
    host.boot(world);
    Some(())
}

async fn power_managers(world: &Arc<World>) -> Option<()> {
    let hosts = world.hosts().into_iter();
    let managers: Vec<_> = hosts.filter(|host| host.number().is_some()).collect();
    managers.iter().for_each(|host| host.kill(world, true));
    for host in managers {
        sleep(world.rng.below(500)).await;
        host.boot(world);
    }
    Some(())
}

async fn full_disk(world: &Arc<World>) -> Option<()> {
    let host = manager(world)?;
    // What was refused is noticed a moment later.
    const NOTICED_MS: u64 = 100;
    host.disk()?;
    // The end of one such fault would be taken for the end of the other.
    if host.full.swap(true, Ordering::Relaxed) {
        return None;
    }
    if let Some(disk) = host.disk() {
        disk.fill(true);
    }
    sleep(500 + world.rng.below(3_000)).await;
    if let Some(disk) = host.disk() {
        disk.fill(false);
    }
    sleep(NOTICED_MS).await;
    host.full.store(false, Ordering::Relaxed);
    Some(())
}

/// A disk that forgets what it said it had synced has no place in a group: its manager never comes
/// back, and another is taken in. One of a run at most: more would be a lost majority.
async fn lying_disk(world: &Arc<World>) -> Option<()> {
    // Who loses a manager does not send another away meanwhile.
    let _alone = world.membership.try_lock().ok()?;
    if voters(world) < 3 || world.hosts().iter().any(|host| host.is_lost()) {
        return None;
    }
    let host = manager(world)?;
    let workers = world.hosts().iter().filter(|host| host.place >= WORKERS).count();
    // Promoted, and there is no other worker: nothing could run any more.
    if host.place >= WORKERS && workers < 2 {
        return None;
    }
    host.lost.store(true, Ordering::Relaxed);
    host.disk()?.lose_syncs(true);
    sleep(200 + world.rng.below(1_500)).await;
    host.kill(world, true);
    world.count(|counts| counts.lost += 1);
    sleep(1_000 + world.rng.below(2_000)).await;
    dismiss(world, &host).await;
    promote(world).await
}

/// Managers that vote, as far as the one that leads knows.
fn voters(world: &World) -> usize {
    let hosts = world.hosts().into_iter();
    let leaders = hosts.filter_map(|host| host.running()).filter_map(|(_, running)| {
        running.store.leader().borrow().then(|| running.store.status().voters.len())
    });
    leaders.min().unwrap_or(0)
}

/// As people do with a dead manager: it is one no longer, and then no node.
async fn dismiss(world: &Arc<World>, dead: &Host) {
    let node = dead.node.to_string();
    let demote = v1::UpdateNodeRequest {
        node: node.clone(),
        manager: Some(false),
        worker: Some(true),
        ..v1::UpdateNodeRequest::default()
    };
    let remove = v1::RemoveNodeRequest { node, force: true, ..v1::RemoveNodeRequest::default() };
    insist(world, &format!("{}: demoted", dead.name), &Ask::Node(demote)).await;
    insist(world, &format!("{}: removed", dead.name), &Ask::RemoveNode(remove)).await;
}

/// Asks until it is done, or is seen to be done already.
async fn insist(world: &Arc<World>, what: &str, ask: &Ask) {
    const TRIES: u32 = 40;
    for _ in 0..TRIES {
        let Some(through) = manager(world) else { return };
        let answer = call::change(world, &through, ask.clone()).await;
        world.note(|| {
            format!("{what} through {}: {:?}", through.name, answer.as_ref().map_err(Status::code))
        });
        if answer.is_ok() || answer.is_err_and(|status| status.code() == Code::NotFound) {
            return;
        }
        sleep(500).await;
    }
}

fn stop(world: &World) -> Option<()> {
    const LONG_MS: u64 = 5_000;
    // An agent that does not run cannot stop what it should after a while without managers.
    const WORKER_MS: u64 = 2_000;
    // A leader takes no notice of less: a pause of half a second, which its consensus, that goes on
    // meanwhile, may wake it from once (seed 4226).
    const NOTICED_MS: u64 = 1_000;
    let host = any(world, |_| true)?;
    let most = if host.number().is_some() && !world.script.hybrid { LONG_MS } else { WORKER_MS };
    let for_ms = 100 + world.rng.below(most - 100);
    world.note(|| format!("{}: stopped for {for_ms} ms", host.name));
    world.net.stop(host.place, for_ms);
    if for_ms > NOTICED_MS {
        held(&world.book).resumed(host.place, world.now_ms() + for_ms);
    }
    Some(())
}

fn link(world: &World, from: &Host, to: &Host, cut: bool) {
    if cut {
        world.net.cut(from.place, to.place);
    } else {
        world.net.mend(from.place, to.place);
    }
}

async fn cut_group(world: &Arc<World>) -> Option<()> {
    let hosts = world.hosts();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for host in hosts {
        if world.rng.below(2) == 0 { here.push(host) } else { there.push(host) }
    }
    let both = |cut: bool| {
        for one in &here {
            for other in &there {
                link(world, one, other, cut);
                link(world, other, one, cut);
            }
        }
    };
    world.note(|| format!("cut off: {:?}", here.iter().map(|h| &h.name).collect::<Vec<_>>()));
    both(true);
    sleep(300 + world.rng.below(6_000)).await;
    both(false);
    Some(())
}

async fn cut_one_way(world: &Arc<World>) -> Option<()> {
    let (from, to) = (any(world, |_| true)?, manager(world)?);
    if from.place == to.place {
        return None;
    }
    world.note(|| format!("{} is not heard by {}", from.name, to.name));
    link(world, &from, &to, true);
    sleep(300 + world.rng.below(6_000)).await;
    link(world, &from, &to, false);
    Some(())
}

async fn cut_worker(world: &Arc<World>) -> Option<()> {
    let lonely = any(world, |host| host.place >= WORKERS)?;
    let others = world.hosts();
    let all = |cut: bool| {
        for other in others.iter().filter(|other| other.place != lonely.place) {
            link(world, &lonely, other, cut);
            link(world, other, &lonely, cut);
        }
    };
    world.note(|| format!("{} is cut off", lonely.name));
    all(true);
    sleep(500 + world.rng.below(12_000)).await;
    all(false);
    Some(())
}

async fn slow_link(world: &Arc<World>) -> Option<()> {
    let (from, to) = (any(world, |_| true)?, manager(world)?);
    let ms = 20 + world.rng.below(200);
    world.net.slow(from.place, to.place, ms);
    world.net.slow(to.place, from.place, ms);
    sleep(1_000 + world.rng.below(4_000)).await;
    world.net.slow(from.place, to.place, 0);
    world.net.slow(to.place, from.place, 0);
    Some(())
}

async fn loss(world: &Arc<World>) -> Option<()> {
    world.net.lose(20 + world.rng.below(150));
    sleep(500 + world.rng.below(3_000)).await;
    world.net.lose(0);
    Some(())
}

fn crash_containers(world: &World) -> Option<()> {
    for _ in 0..1 + world.rng.below(3) {
        let host = any(world, |_| true)?;
        let crashed = held(&host.machine).crash_one(host.clock.now());
        if crashed {
            world.count(|counts| counts.container_crashes += 1);
            world.machine_moved(&host);
            host.poke();
        }
    }
    Some(())
}

async fn role(world: &Arc<World>, host: &Host, manager_too: bool) -> Option<()> {
    let wire = v1::UpdateNodeRequest {
        node: host.node.to_string(),
        manager: Some(manager_too),
        worker: Some(true),
        ..v1::UpdateNodeRequest::default()
    };
    let through = manager(world)?;
    let answer = call::change(world, &through, Ask::Node(wire)).await;
    world.note(|| {
        format!("{}: manager {manager_too}: {:?}", host.name, answer.map_err(|e| e.code()))
    });
    Some(())
}

fn lie(world: &World) -> Option<()> {
    let host = any(world, |_| true)?;
    host.lies.store(true, Ordering::Relaxed);
    host.poke();
    Some(())
}

/// By so much that a minute comes again or not at all, by minutes, or by hours.
fn set_clock(world: &World) -> Option<()> {
    const MINUTE_MS: u64 = 60_000;
    let host = any(world, |_| true)?;
    let most_ms = [2, 10, 300][pick(world.rng.as_ref(), 3)?] * MINUTE_MS;
    let by_ms = i64::try_from(world.rng.below(most_ms)).ok()?;
    let by_ms = if world.rng.below(2) == 0 { by_ms } else { -by_ms };
    world.note(|| format!("{}: its clock is set by {by_ms} ms", host.name));
    host.clock.set(by_ms);
    world.count(|counts| counts.clocks += 1);
    Some(())
}

/// More managers than seven help nobody.
const MANAGERS_MAX: usize = 7;

async fn promote(world: &Arc<World>) -> Option<()> {
    let managers = world.hosts().into_iter().filter(|host| host.number().is_some()).count();
    if managers >= MANAGERS_MAX {
        return None;
    }
    let host = worker(world)?;
    role(world, &host, true).await
}

async fn demote(world: &Arc<World>) -> Option<()> {
    const GONE_MS: u64 = 15_000;
    let _alone = world.membership.try_lock().ok()?;
    if voters(world) < 3 {
        return None;
    }
    let host = manager(world)?;
    role(world, &host, false).await;
    let end = world.now_ms() + GONE_MS;
    while host.number().is_some() && world.now_ms() < end {
        sleep(200).await;
    }
    Some(())
}

async fn drain(world: &Arc<World>) -> Option<()> {
    if !world.script.drains {
        return None;
    }
    let host = any(world, |host| host.place >= WORKERS)?;
    for availability in [Availability::Drain, Availability::Active] {
        let wire = v1::UpdateNodeRequest {
            node: host.node.to_string(),
            availability: v1::Availability::from(availability).into(),
            ..v1::UpdateNodeRequest::default()
        };
        let through = manager(world)?;
        // A refusal leaves it as it is, which is fine as well.
        let answer = call::change(world, &through, Ask::Node(wire)).await;
        if answer.is_ok() && availability == Availability::Drain {
            world.count(|counts| counts.drains += 1);
        }
        sleep(1_000 + world.rng.below(3_000)).await;
    }
    Some(())
}

/// Who was away while all managers that it knows ceased to be some is told of others: `node run
/// --managers`.
fn redirect(world: &World, host: &Host) {
    let managers = world.hosts().into_iter().filter(|host| host.number().is_some());
    let managers: Vec<String> = managers.map(|host| host.address.clone()).collect();
    let kept = held(&host.kept).as_ref().and_then(|kept| kept.set.membership.clone());
    let known = kept.map(|view| view.managers).filter(|known| !known.is_empty());
    let known = known.unwrap_or_else(|| world.first_managers());
    if !known.iter().any(|address| managers.contains(address)) {
        world.note(|| format!("{}: is told of {managers:?}", host.name));
        *held(&host.told) = Some(managers);
        host.poke();
    }
}

/// What people have to do when trouble is over: nodes that drain are taken back, managers that are
/// lost for good are dismissed, nodes that know no manager are told of some.
pub(crate) async fn repair(world: &Arc<World>) {
    for host in world.hosts() {
        if host.is_lost() {
            // Trouble may have ended before its power did: only what is dead is dismissed.
            host.kill(world, true);
            dismiss(world, &host).await;
            continue;
        }
        redirect(world, &host);
        if !world.script.drains {
            continue;
        }
        let wire = v1::UpdateNodeRequest {
            node: host.node.to_string(),
            availability: v1::Availability::Active.into(),
            ..v1::UpdateNodeRequest::default()
        };
        insist(world, &format!("{}: active", host.name), &Ask::Node(wire)).await;
    }
}
