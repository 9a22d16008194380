# Everything a person does here. `make` alone lists the targets.
TARGET := x86_64-unknown-linux-gnu
STATIC_FLAGS := -C target-feature=+crt-static -C relocation-model=static
# Equal code once: 3 % of the file. The toolchain's own linker can, others may not.
LINK_FLAGS := -C link-arg=-Wl,--icf=all
# Where crates lie on the machine that builds is no part of the program: 80 KB of it.
SHORT_PATHS := $$(for place in $${CARGO_HOME:-$$HOME/.cargo}/registry/src/*; do echo "--remap-path-prefix=$$place="; done)
WARREN := target/$(TARGET)/dist/warren
MANAGERS ?= 3
WORKERS ?= 3
SEEDS ?= 500
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 1
FROM ?= 0
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help build demo demo-clean test test-guest test-guest-runtime test-hardening-mutants test-hostile test-programs test-conformance fuzz test-mutants sim testbed soak check deps unit lint deny install bench \
	bench-create bench-dns bench-scale bench-storm bench-cycle bench-memory bench-heal bench-crash bench-state \
	bench-log bench-cluster bench-load bench-writes bench-form bench-failover bench-rotation bench-health bench-worker-loss bench-pause bench-edge \
	bench-quorum bench-idle bench-agents bench-replicas bench-change bench-soak bench-wireguard fuzz-wireguard bench-net bench-attach bench-loop bench-place bench-steady bench-update bench-images

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

build:          ## the shipped binary: static, stripped, one file
	cargo fetch --locked --target $(TARGET)
	RUSTFLAGS="$(STATIC_FLAGS) $(SHORT_PATHS)" cargo rustc --locked --profile dist --target $(TARGET) -p warren --bin warren -- $(LINK_FLAGS)
	cargo xtask size $(WARREN)

demo: build     ## build, start a node, run a real service, show it answering and healing
	scripts/demo $(WARREN)

demo-clean:     ## stop what the demo left running and remove it
	scripts/demo $(WARREN) clean

deps:           ## Debian packages that the tests talk to
	scripts/test-deps

lint:           ## formatting, clippy, layers, generated code
	cargo fmt --all -- --check
	cargo xtask layers
	cargo xtask codegen --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

unit:           ## tests that touch nothing but this folder
	cargo nextest run --locked --workspace -E 'not test(host_)'

testbed:        ## a cluster on this machine to play with and to break: MANAGERS=3 WORKERS=3
	cargo build --locked -p warren
	cargo run --locked -q -p warren-testbed --bin warren-testbed -- --managers $(MANAGERS) --workers $(WORKERS)

sim:            ## simulated clusters with faults, one a seed: SEEDS=20000 FROM=0
	cargo run --locked -q --profile sim -p warren-sim -- --seeds $(SEEDS) --from $(FROM) --jobs 2

test-mutants:   ## breaks the program on purpose: the simulator must notice each time
	crates/sim/mutants/run

fuzz:           ## hostile bytes to readers of images, of the supervisor's messages and of the container's files: FUZZ_SECONDS=600 FUZZ_SEED=1
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) cargo nextest run --locked --profile soak -p warren-shim --ignore-default-filter -E 'test(hostile_bytes)'
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) cargo nextest run --locked --profile soak -p warren-image --ignore-default-filter -E 'test(hostile_bytes)'

fuzz-wireguard: ## hostile bytes to the WireGuard engine, in both directions: FUZZ_SECONDS=600 FUZZ_SEED=1
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) cargo nextest run --locked --profile soak -p warren-wireguard --ignore-default-filter -E 'test(hostile_bytes)'

soak: deps      ## tests that take long: load, and faults for minutes
	cargo build --locked -p warren
	cargo nextest run --locked --profile soak -p warren-testbed -p warren

test-hardening-mutants: deps ## leaves out one protection of containers at a time: its test, and no other, must fail
	scripts/hardening-mutants

test-hostile: deps build ## containers that attack: races and bombs, and what a neighbour feels
	cargo nextest run --locked --profile soak -p warren-runtime
	bench/hostile.py

test-programs: deps build ## a dozen real programs of Debian packages, each as a service and used
	scripts/test-programs $(WARREN)

test-conformance: deps ## the same containers by runc, crun and our runtime
	cargo build --locked -p warren-runtime --example conform
	scripts/conformance target/debug/examples/conform

test-guest-runtime: deps ## the runtime's tests on pure cgroup v2, in a virtual machine with Debian's kernel
	cargo nextest run --locked --no-run -p warren-runtime
	scripts/guest-tests warren-runtime host_

test-guest: deps ## what needs WireGuard, netem or pure cgroup v2 of the kernel, in a virtual machine with Debian's
	cargo build --locked -p warren
	cargo nextest run --locked --no-run -p warren-net -p warren-testbed
	scripts/guest-tests warren-net guest_ host_
	scripts/guest-tests warren-testbed guest_

check: lint unit ## the quick ring

test: deps lint ## everything
	cargo nextest run --locked --workspace
	$(MAKE) sim SEEDS=500
	$(MAKE) build
	scripts/demo $(WARREN) check
	scripts/test-images $(WARREN)

deny:           ## licences, bans and sources of all dependencies
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check bans licenses sources

install: build  ## into /usr/local/bin, with the alias wrn and the systemd unit
	install -m 0755 $(WARREN) /usr/local/bin/warren
	ln -sf warren /usr/local/bin/wrn
	install -D -m 0644 scripts/warren.service /usr/local/lib/systemd/system/warren.service

bench: bench-state bench-log bench-cycle bench-dns bench-create bench-scale bench-storm bench-heal bench-memory bench-crash bench-cluster ## all figures but the soak

bench-state:    ## memory and speed of the state at a million tasks
	cargo run --release -q -p warren-state --example bench_state
	cargo run --release -q -p warren-store --example bench_snapshot

bench-steady:   ## what 10,000 nodes with 10 tasks each cost the leader while nothing happens
	cargo run --locked --release -q -p warren-planner --example bench_steady

bench-place:    ## a million tasks onto 5,000 nodes, and ten more on the full cluster
	cargo run --locked --release -q -p warren-planner --example bench_place

bench-log:      ## appends per second with real fsync
	cargo run --release -q -p warren-store --example bench_log

bench-cycle:    ## start+exit+delete of one container, side by side with crun
	cargo build --release -q -p warren-runtime --example cycle
	bench/cycle.py

bench-attach:   ## a container's network: one after another, and 100 at once
	cargo build --locked --release -q -p warren-net --example attach
	unshare -n target/release/examples/attach 4

bench-net:      ## a change among 5,000 services, all of them at once, CPU of a request by service address and mesh
	bench/net.py

bench-create: build ## service create to the first answer, side by side with Docker Swarm
	bench/swarm.py create

bench-scale: build ## 1 to 100 replicas and their removal, side by side with Docker Swarm
	bench/swarm.py scale

bench-storm: build ## 50 services, side by side with Docker Swarm
	bench/swarm.py storm

bench-loop: build ## containers that end as soon as they begin, for ten minutes: CPU, memory, disk
	bench/node.py loop

bench-update: build ## a rolling update of 10 replicas, side by side with Docker Swarm
	bench/update.py

bench-images: build ## pull, save and load of an image, side by side with skopeo and containerd
	bench/images.py

bench-dns:      ## CPU and latency of a name's query, side by side with dnsmasq
	cargo build --locked --release -q -p warren-net --example bench_dns
	bench/dns.py

bench-wireguard: ## WireGuard in our process, side by side with boringtun-cli, wireguard-go, VXLAN and plain routes
	cargo build --locked --release -q -p warren-wireguard --example node
	bench/wireguard.py

bench-heal: build ## kill -9 of a container to its replacement
	bench/node.py heal

bench-memory: build ## memory and idle CPU with 0 and 100 containers
	bench/node.py memory

bench-crash: build ## kill -9 of the daemon, 50 times, under load
	bench/node.py crash

bench-cluster: bench-writes bench-form bench-failover bench-rotation bench-health bench-worker-loss bench-pause bench-edge bench-quorum bench-idle bench-agents bench-replicas bench-change ## figures of clusters

bench-load:     # clients and agents for the benchmarks of clusters
	cargo build --locked --release -q -p warren-testbed --bin warren-load

bench-writes:   ## writes a second of three managers, side by side with etcd
	cargo build --locked --release -q -p warren-store --example bench_raft
	bench/etcd.py

bench-form: build bench-load ## 3 managers and 3 workers from nothing, one more worker
	bench/cluster.py form

bench-failover: build bench-load ## the leader killed and stopped under 8 writing clients, side by side with etcd
	bench/cluster.py failover

bench-health: build bench-load ## from a sick container to its last answer on all nodes, CPU of HTTP probes against a bare loop
	bench/health.py

bench-rotation: build bench-load ## from the end of a container to the last connection that is refused, on all nodes
	bench/rotation.py

bench-worker-loss: build bench-load ## workers killed and cut off: tasks running elsewhere
	bench/cluster.py worker-loss

bench-pause: build bench-load ## SIGSTOP of leader, worker, host: what is rescheduled
	bench/cluster.py pause

bench-edge: build bench-load ## a worker without managers: crashes, reboots, healing
	bench/cluster.py edge

bench-quorum: build bench-load ## two of three managers lost, recovery
	bench/cluster.py quorum

bench-idle: build bench-load ## what a cluster costs at rest, 5 minutes
	bench/cluster.py idle

bench-agents: build bench-load ## 1,000 agents on 3 managers
	bench/cluster.py agents

bench-replicas: build bench-load ## 1 to 1,000 replicas on 100 agents that run nothing, by the API of 3 managers
	bench/cluster.py replicas

bench-change: build bench-load ## one backend more among 5,000 services: until the kernel of every node has it
	bench/change.py

bench-soak: build bench-load ## an hour of churn: what grows
	bench/cluster.py soak
