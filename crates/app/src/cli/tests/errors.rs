//! What wrong input and refusals look like.

use expect_test::{Expect, expect};

use super::fake::{FakeNode, World};
use super::samples::web;
use super::say;

/// Lines of input, each answered by its exit code, error and hint; nothing may reach the node.
async fn check(lines: &[&str], expected: Expect) {
    let node = FakeNode::start(World { services: vec![web()], ..World::default() });
    let mut text = String::new();
    for line in lines {
        let said = say(&node, line).await;
        assert_eq!(said.out, "", "{line}");
        text.push_str(&format!("$ {line}\n{} {}", said.exit, said.err));
    }
    expected.assert_eq(&text);
    node.world(|world| assert!(world.created.is_empty() && world.updated.is_empty()));
}

#[tokio::test]
async fn flags() {
    check(
        &[
            "service create web --image nginx --replica 3",
            "service create --name web --image nginx",
            "service create web",
            "service create Web --image nginx",
            "service create web --image nginx --replicas many",
            "service create web --image nginx --replicas -1",
            "service create web --image nginx --mode globl",
            "service create web --image nginx --mode global --replicas 2",
            "service create web --image nginx -p 80",
            "service create web --image nginx -p 0:80",
            "service create web --image nginx -p 80:80 -p 80:81",
            "service create web --image nginx --limit-memory 5x",
            "service create web --image nginx --limit-memory 1k",
            "service create web --image nginx --limit-memory -5",
            "service create web --image nginx --limit-cpu fast",
            "service create web --image nginx --limit-cpu -1",
            "service create web --image nginx --restart-delay soon",
            "service create web --image nginx --stop-grace-period 5",
            "service create web --image nginx --stop-grace-period -5s",
            "service create web --image nginx -e =x",
            "service create web --image nginx -e A=1 -e A=2",
            "service create web --image nginx --env-file /none/such",
            "service create web --image nginx --user a:b:c",
            "service create web --image nginx -w tmp",
            "service create web --image nginx --stop-signal SIGFOO",
            "service create web --image nginx --cap-add NET",
            "service create web --image nginx --log-opt max-files=3",
            "service create web --image nginx --log-opt max-file=0",
            "service create web --image nginx --log-opt max-size=1",
            "service create web --image nginx --hostname a_b",
            "service create web --image nginx --hostname -a",
            "service create web --image nginx --label =x",
            "service create web --image nginx --entrypoint \"sh -c 'x\"",
            "service create web --image ''",
        ],
        expect![[r#"
            $ service create web --image nginx --replica 3
            2 error: there is no flag "--replica" here
            hint: did you mean --replicas?
            $ service create --name web --image nginx
            2 error: there is no flag "--name" here
            hint: the name comes first: warren service create NAME --image REF
            $ service create web
            2 error: --image is missing
            hint: usage: warren service create --image <REF> <NAME> [CMD]...
            $ service create Web --image nginx
            2 error: NAME: name "Web" has 'W' at position 1; allowed are a-z, 0-9, '-' and '_', first and last a letter or digit
            $ service create web --image nginx --replicas many
            2 error: --replicas: "many" is not a number from 0 to 4294967295
            $ service create web --image nginx --replicas -1
            2 error: --replicas: "-1" is not a number from 0 to 4294967295
            $ service create web --image nginx --mode globl
            2 error: --mode: "globl" is not one of replicated, global, replicated-job, global-job
            hint: did you mean global?
            $ service create web --image nginx --mode global --replicas 2
            2 error: --replicas: 2 cannot be asked of a global service, which has one replica on every node
            $ service create web --image nginx -p 80
            2 error: --publish: "80" lacks a colon; write PUBLISHED:TARGET, e.g. 8080:80
            $ service create web --image nginx -p 0:80
            2 error: --publish: "0" in "0:80" is not a port, allowed are 1 to 65535
            $ service create web --image nginx -p 80:80 -p 80:81
            2 error: --publish: "80:81" publishes the same port as 80:80
            $ service create web --image nginx --limit-memory 5x
            2 error: --limit-memory: "5x" is not a size; write a number with B, KB, MB, GB, KiB, MiB, GiB, k, m or g, e.g. 128MiB
            $ service create web --image nginx --limit-memory 1k
            2 error: --limit-memory: "1024" is less than 6291456 bytes (6 MiB)
            $ service create web --image nginx --limit-memory -5
            2 error: --limit-memory: "-5" is not a size; write a number with B, KB, MB, GB, KiB, MiB, GiB, k, m or g, e.g. 128MiB
            $ service create web --image nginx --limit-cpu fast
            2 error: --limit-cpu: "fast" is not a number of cores; write e.g. 0.5 or 2 (at least 0.001, at most 1000)
            $ service create web --image nginx --limit-cpu -1
            2 error: --limit-cpu: "-1" is not a number of cores; write e.g. 0.5 or 2 (at least 0.001, at most 1000)
            $ service create web --image nginx --restart-delay soon
            2 error: --restart-delay: "soon" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
            $ service create web --image nginx --stop-grace-period 5
            2 error: --stop-grace-period: "5" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
            $ service create web --image nginx --stop-grace-period -5s
            2 error: --stop-grace-period: "-5s" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
            $ service create web --image nginx -e =x
            2 error: --env: "=x" is not of the form KEY=value
            $ service create web --image nginx -e A=1 -e A=2
            2 error: --env: "A=2" sets A a second time
            $ service create web --image nginx --env-file /none/such
            2 error: --env-file: /none/such: No such file or directory
            $ service create web --image nginx --user a:b:c
            2 error: --user: "a:b:c" is not of the form user, uid, user:group or uid:gid
            $ service create web --image nginx -w tmp
            2 error: --workdir: "tmp" is not an absolute path
            $ service create web --image nginx --stop-signal SIGFOO
            2 error: --stop-signal: "SIGFOO" is not a signal; write e.g. SIGTERM, INT or 15
            $ service create web --image nginx --cap-add NET
            2 error: --cap-add or --cap-drop: "NET" is not a capability; write e.g. NET_ADMIN or ALL
            $ service create web --image nginx --log-opt max-files=3
            2 error: --log-opt: there is no option "max-files"; did you mean max-file?
            $ service create web --image nginx --log-opt max-file=0
            2 error: --log-opt: "max-file=0" keeps nothing, allowed is 1 or more
            $ service create web --image nginx --log-opt max-size=1
            2 error: --log-opt: "max-size=1" is less than 4096 bytes
            $ service create web --image nginx --hostname a_b
            2 error: --hostname: "a_b" is not a host name (letters, digits and '-', at most 64)
            $ service create web --image nginx --hostname -a
            2 error: --hostname: "-a" is not a host name (letters, digits and '-', at most 64)
            $ service create web --image nginx --label =x
            2 error: --label: "=x" is not of the form KEY=value
            $ service create web --image nginx --entrypoint "sh -c 'x"
            2 error: --entrypoint: "sh -c 'x" has a quote that is not closed
            $ service create web --image ''
            2 error: --image: "" is empty, name one such as nginx:1.27
        "#]],
    )
    .await;
}

#[tokio::test]
async fn commands() {
    check(
        &[
            "servce ls",
            "service",
            "service crate web",
            "service scale web",
            "service scale web=many",
            "service scale web=100001",
            "service ls --format jsn",
            "service ls --format '{{.Nam}}'",
            "service ls -q --format json",
            "service logs web --since yesterday",
            "service logs web --tail few",
            "service logs web --tail -1",
            "service update web --publish-rm 0",
            "exec web",
            "wait service web --timeout 5",
            "wait service web --timeout -5s",
            "completion tcsh",
            "registry login --password x -u me",
            "image import rootfs.tar",
            "image import rootfs.tar x:1 --user a:b:c",
            "image import rootfs.tar x:1 --stop-signal SIGFOO",
            "image load /none/such.tar",
            "image load /",
        ],
        expect![[r#"
            $ servce ls
            2 error: there is no command "servce"
            hint: did you mean service?
            $ service
            2 Services: images that run in replicas

            Usage: warren service [OPTIONS] <COMMAND>

            Commands:
              create     Run an image as a service
              ls         List services [alias: list]
              ps         List the tasks of services, those that ended included
              inspect    Show everything about services as JSON
              logs       Show the output of a service, a slot or a task
              update     Change a service
              scale      Set numbers of replicas
              restart    Replace all containers, by the service's update policy
              history    List what a service was, and what changed
              rollback   Go back to an earlier revision
              pause      Halt the update of services: replicas that are not replaced yet stay
              resume     Let an update that is paused go on
              suspend    Let the schedules of jobs begin nothing, until `unsuspend`
              unsuspend  Let the schedules of jobs go on
              rm         Remove services and their containers [alias: remove]

            Options:
              -h, --help  Print help

            Where:
                  --config <FILE>   Configuration file [env: WARREN_CONFIG] [default: /etc/warren/warren.toml]
                  --run-dir <DIR>   Folder of the socket, pid file and shims [env: WARREN_RUN_DIR] [default: /run/warren]
                  --context <NAME>  Call this cluster from afar, not the node of this machine [env: WARREN_CONTEXT]
            $ service crate web
            2 error: there is no command "crate"
            hint: did you mean create?
            $ service scale web
            2 error: SERVICE=N: "web" is not of the form SERVICE=N, e.g. web=3
            $ service scale web=many
            2 error: SERVICE=N: "web=many" does not end in a number of replicas from 0 to 100000
            $ service scale web=100001
            2 error: SERVICE=N: "web=100001" does not end in a number of replicas from 0 to 100000
            $ service ls --format jsn
            2 error: --format: "jsn" is not a format; write table, json, yaml or a template such as '{{.Name}}'
            $ service ls --format '{{.Nam}}'
            2 error: --format: there is no field .Nam
            hint: did you mean .name?
            $ service ls -q --format json
            2 error: --quiet and --format exclude each other
            $ service logs web --since yesterday
            2 error: --since: "yesterday" is not a moment; write e.g. 10m or 2026-01-31T08:00:00Z
            $ service logs web --tail few
            2 error: --tail: "few" is not a number of lines; write e.g. 100 or all
            $ service logs web --tail -1
            2 error: --tail: "-1" is not a number of lines; write e.g. 100 or all
            $ service update web --publish-rm 0
            2 error: --publish-rm: "0" in "0" is not a port, allowed are 1 to 65535
            $ exec web
            2 error: CMD is missing
            hint: usage: warren exec <TARGET> <CMD>...
            $ wait service web --timeout 5
            2 error: --timeout: "5" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
            $ wait service web --timeout -5s
            2 error: --timeout: "-5s" is not a duration; write numbers with ms, s, m, h or d, e.g. 1m30s
            $ completion tcsh
            2 error: SHELL: "tcsh" is not one of bash, zsh, fish
            hint: did you mean zsh?
            $ registry login --password x -u me
            2 error: there is no flag "--password" here
            hint: arguments can be read by every user: use --password-stdin
            $ image import rootfs.tar
            2 error: NAME:TAG is missing
            hint: usage: warren image import <ROOTFS.tar> <NAME:TAG>
            $ image import rootfs.tar x:1 --user a:b:c
            2 error: --user: "a:b:c" is not of the form user, uid, user:group or uid:gid
            $ image import rootfs.tar x:1 --stop-signal SIGFOO
            2 error: --stop-signal: "SIGFOO" is not a signal; write e.g. SIGTERM, INT or 15
            $ image load /none/such.tar
            2 error: /none/such.tar: No such file or directory
            $ image load /
            2 error: /: is a folder, not an archive
        "#]],
    )
    .await;
}

#[tokio::test]
async fn refusals() {
    let refused = |code, message, hint| World {
        services: vec![web()],
        refusal: Some((code, message, hint)),
        ..World::default()
    };
    let mut text = String::new();
    for (code, message, hint) in [
        (tonic::Code::AlreadyExists, "service web exists already", "warren service update web"),
        (
            tonic::Code::FailedPrecondition,
            "port 8080/tcp is taken by nginx (pid 7)",
            "choose another",
        ),
        (tonic::Code::NotFound, "no image nginx:9", "warren image pull nginx:9"),
        (tonic::Code::InvalidArgument, "user: \"bob\" is not in the image", "users are root"),
        (tonic::Code::Internal, "disk is full", "make room"),
    ] {
        let node = FakeNode::start(refused(code, message, hint));
        let said = say(&node, "service create web --image nginx:9 -p 8080:80").await;
        assert_eq!(said.out, "");
        text.push_str(&format!("{} {}", said.exit, said.err));
    }
    expect![[r#"
        4 error: service web exists already
        hint: warren service update web
        4 error: port 8080/tcp is taken by nginx (pid 7)
        hint: choose another
        3 error: no image nginx:9
        hint: warren image pull nginx:9
        2 error: user: "bob" is not in the image
        hint: users are root
        1 error: disk is full
        hint: make room
    "#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn nobody_there() {
    let node = FakeNode::start(World::default());
    std::fs::remove_file(node.socket()).unwrap();
    let said = say(&node, "service ls").await;
    let err = said.err.replace(&*node.folder().to_string_lossy(), "DIR");
    assert_eq!(said.exit, 5);
    expect![[r#"
        error: no node is running here: nothing answers at DIR/warren.sock
        hint: start it with `warren node run`, or make a cluster with `warren cluster init`
    "#]]
    .assert_eq(&err);
    let said = say(&node, "doctor").await;
    assert_eq!(said.exit, 0, "{}", said.err);
    // There is somebody to be called elsewhere.
    let file = node.folder().join("shop");
    let token = warren_trust::ApiToken::generate(&warren_base::rng::SeededRng::new(1)).to_text();
    let text = serde_json::json!({
        "addresses": ["127.0.0.1:1"], "fingerprint": "ab".repeat(32), "token": token.as_str(),
    });
    std::fs::write(&file, text.to_string()).unwrap();
    let made = say(&node, &format!("context create shop --from {}", file.display())).await;
    assert_eq!(made.exit, 0, "{}", made.all());
    let said = say(&node, "service ls").await;
    assert!(said.err.contains("from afar with --context: shop"), "{}", said.err);
    let changed = say(&node, "context update shop --address 127.0.0.1:2").await;
    assert_eq!((changed.exit, changed.out.as_str()), (0, "shop\n"));
    let said = say(&node, "--context shop service ls").await;
    assert!(said.exit == 5 && said.err.contains("127.0.0.1:2"), "{}", said.all());
    let nothing = say(&node, "context update shop").await;
    assert_eq!(nothing.exit, 2, "{}", nothing.all());
}

#[tokio::test]
async fn help() {
    let node = FakeNode::start(World::default());
    let said = say(&node, "--help").await;
    assert_eq!((said.exit, said.err.as_str()), (0, ""));
    expect![[r#"
        Containers on one machine or many

        Usage: warren [OPTIONS] <COMMAND>

        Commands:
          cluster     The cluster
          node        Nodes, this one first of all
          service     Services: images that run in replicas
          job         Jobs: services whose tasks end, and their runs
          task        Tasks: single containers of services
          ps          List the tasks of all services
          explain     Show why something is where it is, or nowhere, and what would help
          simulate    Show what would be where if; changes nothing
          exec        Run a command in a container
          image       Images of this node
          registry    Registries that images are pulled from
          wait        Wait until something is as it should be
          events      Show what happens in the cluster
          audit       Show who changed what
          network     Networks: which services reach each other, and by which names
          policy      Policies: who may reach whom within networks, and what is outside
          operator    People and programs that may call from afar
          context     Clusters that are called from afar
          doctor      Look for what is wrong with this machine and its node
          version     Show what this program is
          completion  Print a completion script for a shell

        Options:
          -h, --help     Print help
          -V, --version  Print version

        Where:
              --config <FILE>   Configuration file [env: WARREN_CONFIG] [default: /etc/warren/warren.toml]
              --run-dir <DIR>   Folder of the socket, pid file and shims [env: WARREN_RUN_DIR] [default: /run/warren]
              --context <NAME>  Call this cluster from afar, not the node of this machine [env: WARREN_CONTEXT]
    "#]].assert_eq(&said.out);
    let said = say(&node, "service create --help").await;
    expect![[r#"
        Run an image as a service

        Usage: warren service create [OPTIONS] --image <REF> <NAME> [CMD]...

        Arguments:
          <NAME>    Name of the service: a-z, 0-9, '-' and '_', at most 63
          [CMD]...  Command and its arguments, instead of the image's

        Options:
          -d, --detach
                  Do not wait until the service has converged
              --no-check
                  Do not check image, command, user and ports on a node before accepting
              --image <REF>
                  Image to run, e.g. nginx:1.27
              --replicas <N>
                  Number of replicas; of a job, of tasks to their end [default: 1]
              --mode <MODE>
                  replicated, or global: one on every node; of a job tasks end and are not begun again [default: replicated] [possible values: replicated, global, replicated-job, global-job]
          -p, --publish <PORT>
                  Publish a port: [IP:]PUBLISHED:TARGET[/udp] or published=,target=,protocol=,mode=ingress|host,host_ip=
          -e, --env <KEY=VALUE>
                  Set a variable; KEY alone takes the caller's value
              --env-file <FILE>
                  Read variables from a file
              --label <KEY=VALUE>
                  Label of the service
              --container-label <KEY=VALUE>
                  Label of its containers
              --network <NETWORK>
                  Put it on a network: NAME[,alias=A][,ip=ADDRESS]; repeat for more; host is the node's own [default: default]
              --hostname <HOST>
                  Host name of its containers
              --cap-add <CAP>
                  Add a capability
              --cap-drop <CAP>
                  Drop a capability
              --device <HOST[:CONTAINER[:rwm]]>
                  Give it a device of the node, or all in a folder: /dev/fuse, /dev/sda:/dev/xvda:r
              --group-add <GROUP>
                  One more group of its user: a name in the image, or a number
              --ulimit <NAME=SOFT[:HARD]>
                  Limit of each of its processes, e.g. nofile=1024:4096; -1 is unlimited
              --sysctl <KEY=VALUE>
                  Setting of its own namespaces, e.g. net.core.somaxconn=1024
              --read-only
                  Root file system cannot be written to
              --init-container <CONTAINER>
                  Run a container to its end before the service's own starts: name=,image=[,cmd=,env=K=V, user=,workdir=,limit-memory=,reserve-cpu=,…]; repeat for more, they run in this order
              --sidecar <CONTAINER>
                  Run a container beside the service's own, in its network: keys as above, and health-cmd=, health-http=, health-tcp=,…
              --mount <MOUNT>
                  Mount a folder that the containers of a task have in common: type=task,name=NAME,target=/PATH[,readonly]
              --constraint <CONSTRAINT>
                  Only on nodes of which this holds, e.g. node.labels.disk==ssd; also !=, =~ (a pattern with * and ?), in a,b, < and >
              --prefer <CONSTRAINT>
                  Rather on nodes of which this holds; the first that is given counts most
              --placement-pref <PREFERENCE>
                  Spread evenly over the values of a node's attribute: spread=node.labels.zone
              --affinity <SERVICE>
                  Only on nodes that have a task of another service; SERVICE:soft if there are any
              --anti-affinity <SERVICE>
                  On no node that has a task of another service; SERVICE:soft if there are others
              --toleration <TAINT>
                  Also on nodes with this taint: KEY[=VALUE][:EFFECT], or * for any
          -u, --user <USER>
                  User: name, uid, user:group or uid:gid
          -w, --workdir <DIR>
                  Working directory
              --entrypoint <COMMAND>
                  Entrypoint instead of the image's, split like a shell does
              --limit-cpu <CORES>
                  Processor time, e.g. 0.5 or 2 cores
              --limit-memory <SIZE>
                  Memory, e.g. 128MiB
              --limit-pids <N>
                  Processes and threads
              --stop-signal <SIGNAL>
                  Signal that asks a container to end
              --stop-grace-period <DURATION>
                  Time from that signal to SIGKILL, e.g. 10s
              --restart-condition <CONDITION>
                  When a container that ended is started again [default: any; of a job: on-failure] [possible values: none, on-failure, any]
              --restart-delay <DURATION>
                  Pause before a restart; doubles while it keeps failing [default: 100ms]
              --restart-max-attempts <N>
                  Restarts within the window before the replica counts as failed; 0 is no limit [default: 0; of a job: 3]
              --restart-window <DURATION>
                  Running this long forgets earlier failures [default: 10s]
              --update-parallelism <N>
                  Replicas replaced at a time; 0 is all [default: 1]
              --update-delay <DURATION>
                  Pause between batches
              --update-order <ORDER>
                  Whether the new one starts before the old one stops [default: start-first] [possible values: start-first, stop-first]
              --update-monitor <DURATION>
                  A new replica must stay up for so long to be good [default: 1s]
              --update-max-failure-ratio <RATIO>
                  Part of the replicas that may fail, from 0 to 1 [default: 0]
              --update-failure-action <ACTION>
                  What becomes of an update when more fail [default: pause] [possible values: pause, continue, rollback]
              --update-max-surge <N>
                  With start-first, replicas beyond the wanted ones at a time; 'none' is no limit of its own
              --update-max-unavailable <N>
                  With stop-first, replicas that may be missing, for whatever reason; 'none' is no limit of its own
              --update-deadline <DURATION>
                  No progress for so long counts as failed; 0 is no limit [default: 0]
              --rollback-parallelism <N>
                  Of a rollback: replicas replaced at a time; 0 is all [default: as updates]
              --rollback-delay <DURATION>
                  Of a rollback: pause between batches [default: as updates]
              --rollback-order <ORDER>
                  Of a rollback: which comes first [default: as updates] [possible values: start-first, stop-first]
              --rollback-monitor <DURATION>
                  Of a rollback: a replica must stay up for so long to be good [default: as updates]
              --rollback-max-failure-ratio <RATIO>
                  Of a rollback: part of the replicas that may fail, from 0 to 1 [default: as updates]
              --rollback-failure-action <ACTION>
                  What becomes of a rollback when more fail [default: pause] [possible values: pause, continue]
              --pre-deploy-cmd <COMMAND>
                  Run once in a container of the new image before any replica gets it, and stop the update if that fails: a line for /bin/sh, or a JSON array of words; '' takes it away
              --post-deploy-cmd <COMMAND>
                  Run once when all replicas are new and good: as before
              --hook-timeout <DURATION>
                  For all tries of one of them [default: 10m]
              --hook-retries <N>
                  Tries after the first, on the same node [default: 0]
              --on-disconnect <POLICY>
                  When the node is out of reach: keep; stop-after=D: the node stops it; replace-after=D: it is started elsewhere [default: replace-after=3s]
              --health-cmd <COMMAND>
                  Healthy if this command exits with 0 in the container: a line for /bin/sh, or a JSON array of words; '' takes the check back
              --health-http <PATH[:PORT]>
                  Healthy if a GET is answered with a good status; the port is the first one published
              --health-https <PATH[:PORT]>
                  The same over TLS, whoever the certificate is for
              --health-tcp <PORT>
                  Healthy if a connection is accepted
              --health-grpc <PORT[/SERVICE]>
                  Healthy if grpc.health.v1 says SERVING, of one service or of all
              --health-header <NAME=VALUE>
                  Header of the GET
              --health-status <STATUS>
                  Status that is good, or a range [default: 200-399]
              --health-interval <TIME>
                  From one probe to the next [default: 5s]
              --health-timeout <TIME>
                  A probe without an answer after that has failed [default: 2s]
              --health-retries <N>
                  Failures in a row that make a container unhealthy [default: 3]
              --health-start-period <TIME>
                  For so long after a start failures do not count, until the first success [default: 30s]
              --health-start-interval <TIME>
                  Longest pause between probes within the start period [default: 1s]
              --health-action <ACTION>
                  What becomes of an unhealthy container: restart, as if it had failed, or none [default: restart] [possible values: restart, none]
              --no-healthcheck
                  Ask nothing: ready when it runs
              --reserve-cpu <CORES>
                  Keep processor time free for each replica, e.g. 0.5 cores
              --reserve-memory <SIZE>
                  Keep memory free for each replica, e.g. 128MiB
              --reserve-pids <N>
                  Keep processes and threads free for each replica
              --reserve-disk <SIZE>
                  Keep disk free for each replica, e.g. 10GiB
              --reserve <NAME=N>
                  Keep pieces of what nodes say they have for each replica, e.g. gpu=1; 0 takes it back
              --replicas-max-per-node <N>
                  Replicas on one node; 0 is no limit
              --priority <N>
                  Who is placed first, and who may be ended for whom: -1000 to 1000, higher is more [default: 0]
              --preempt <WHOM>
                  Whether tasks of services of lower priority are ended for one that fits nowhere [default: never] [possible values: never, lower]
              --strategy <STRATEGY>
                  Which of the nodes that fit: spread (the emptiest), bin-pack (the fullest), or default (as the cluster's settings say)
              --cpuset-cpus <LIST>
                  Processors that may be used, e.g. 0-3,7; '' for all
              --cpuset-mems <LIST>
                  Memory nodes that may be used, e.g. 0; '' for all
              --cpu-shares <N>
                  Weight against others while processors are busy; 1024 is what all have, 0 takes it back
              --limit-swap <SIZE>
                  Swap beside --limit-memory; without it there is none
              --blkio-weight <N>
                  Weight against others while disks are busy: 10 to 1000; 0 takes it back
              --device-read-bps <DEVICE:RATE>
                  Bytes that are read from a device of the node in a second; a rate of 0 takes it back
              --device-write-bps <DEVICE:RATE>
                  Bytes that are written to a device of the node in a second
              --device-read-iops <DEVICE:N>
                  Operations that read from a device of the node in a second
              --device-write-iops <DEVICE:N>
                  Operations that write to a device of the node in a second
              --min-available <N|P%>
                  Replicas that must work while others are moved or renewed: a number, a part such as 80%, or none
              --rebalance <auto|never>
                  Whether replicas are moved to nodes that came later: auto or never
              --endpoint-mode <MODE>
                  What its name stands for: a virtual IP, or the addresses of its replicas [default: vip] [possible values: vip, dnsrr]
              --endpoint-affinity <AFFINITY>
                  client-ip: the same client meets the same replica [default: none] [possible values: none, client-ip]
              --endpoint-prefer-local[=<BOOL>]
                  Replicas on the caller's own node come first [possible values: true, false]
              --slot-addresses[=<BOOL>]
                  Each slot has an address of its own, whichever task is in it [possible values: true, false]
              --privileged[=<BOOL>]
                  All capabilities and devices of the node, and no system call refused; the cluster must allow it, as all below that reaches out of the container [possible values: true, false]
              --security-opt <OPTION>
                  no-new-privileges=BOOL [default: true], seccomp=default|unconfined|FILE
              --pid <WHOSE>
                  Whose processes it sees: host or private [default: private] [possible values: host, private]
              --ipc <WHOSE>
                  Whose shared memory and message queues it has: host or private [default: private] [possible values: host, private]
              --init[=<BOOL>]
                  Run a small init first, which passes signals on and reaps processes [possible values: true, false]
              --oom-score-adj <N>
                  How gladly the kernel ends it when memory runs out: -1000 to 1000 [default: 0]
              --log-opt <KEY=VALUE>
                  Rotation of logs: max-size=10MiB, max-file=3
          -h, --help
                  Print help

        Jobs:
              --max-concurrent <N>            Tasks of a replicated-job at the same time [default: all]
              --job-time-limit <DURATION>     Time for a whole run, from its beginning; what runs then is stopped; 0 is no limit
              --job-history <N>               Runs that ended and are kept, with their tasks [default: 5]
              --schedule <SCHEDULE>           Begin runs at these times: "MINUTE HOUR DAY MONTH WEEKDAY" or @hourly, @daily, @weekly, @monthly, @yearly; '' takes the schedule away
              --schedule-timezone <ZONE>      Time zone of the schedule, e.g. Europe/Berlin [default: UTC]
              --schedule-concurrency <RULE>   When a run is due while another goes on: allow, forbid or replace [default: forbid]
              --schedule-missed <RULE>        What becomes of times at which no manager was there: skip or run-once [default: skip]
              --schedule-deadline <DURATION>  A run that is due for longer is missed [default: 1m; with run-once: however late]
              --param <NAME[=VALUE]>          Declare a parameter of runs, in their containers as WARREN_PARAM_NAME; without a value each run must be given one
              --param-rm <NAME>               Take a parameter away
              --payload <RULE>                Whether a run may have a payload: optional, required or forbidden [default: forbidden]
              --job-concurrency <RULE>        Without a schedule, when a run begins while another goes on: allow, forbid or replace [default: allow if runs take parameters or a payload, else replace]

        Where:
              --config <FILE>   Configuration file [env: WARREN_CONFIG] [default: /etc/warren/warren.toml]
              --run-dir <DIR>   Folder of the socket, pid file and shims [env: WARREN_RUN_DIR] [default: /run/warren]
              --context <NAME>  Call this cluster from afar, not the node of this machine [env: WARREN_CONTEXT]
    "#]].assert_eq(&said.out);
    assert!(say(&node, "--version").await.out.starts_with("warren 0."));
}
