# Everything a person does here. `make` alone lists the targets.
TARGET := x86_64-unknown-linux-gnu
STATIC_FLAGS := -C target-feature=+crt-static -C relocation-model=static
WARREN := target/$(TARGET)/dist/warren
MANAGERS ?= 3
WORKERS ?= 3
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help build demo demo-clean test testbed soak check deps unit lint deny install bench \
	bench-create bench-scale bench-storm bench-cycle bench-memory bench-heal bench-crash bench-state bench-log

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

build:          ## the shipped binary: static, stripped, one file
	RUSTFLAGS="$(STATIC_FLAGS)" cargo build --locked --profile dist --target $(TARGET) -p warren
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

soak: deps      ## tests that take long: load, and faults for minutes
	cargo build --locked -p warren
	cargo nextest run --locked --profile soak -p warren-testbed

check: lint unit ## the quick ring

test: deps lint ## everything
	cargo build --locked -p warren
	cargo nextest run --locked --workspace
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

bench: bench-state bench-log bench-cycle bench-create bench-scale bench-storm bench-heal bench-memory bench-crash ## all figures

bench-state:    ## memory and speed of the state at a million tasks
	cargo run --release -q -p warren-state --example bench_state
	cargo run --release -q -p warren-store --example bench_snapshot

bench-log:      ## appends per second with real fsync
	cargo run --release -q -p warren-store --example bench_log

bench-cycle:    ## start+exit+delete of one container, side by side with crun
	cargo build --release -q -p warren-runtime --example cycle
	bench/cycle.py

bench-create: build ## service create to the first answer, side by side with Docker Swarm
	bench/swarm.py create

bench-scale: build ## 1 to 100 replicas and their removal, side by side with Docker Swarm
	bench/swarm.py scale

bench-storm: build ## 50 services, side by side with Docker Swarm
	bench/swarm.py storm

bench-heal: build ## kill -9 of a container to its replacement
	bench/node.py heal

bench-memory: build ## memory and idle CPU with 0 and 100 containers
	bench/node.py memory

bench-crash: build ## kill -9 of the daemon, 50 times, under load
	bench/node.py crash
