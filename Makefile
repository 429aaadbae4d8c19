# What you need to run, test and remove bhatti. The work is done in scripts/ and xtask/.

.DEFAULT_GOAL := help
.PHONY: help up down clean test test-arm64 soak bench lint web guest kvm-box

help:
	@echo 'make up      install what is missing, build, start the daemon, run a first sandbox'
	@echo 'make down    stop the daemon and its machines; everything stays on disk'
	@echo 'make clean   remove all that "make up" made (asks first; YES=1 does not)'
	@echo 'make test    all checks and all tests, with real machines'
	@echo 'make test-arm64  the engine with emulated aarch64 machines, on any host'
	@echo 'make soak    sleep, wake, snapshots and crashes at random; SECONDS=300 SANDBOXES=12 SEED=1'
	@echo 'make bench   boot, sleep, exec and memory beside the bare engine; BENCH="--only sleep"'
	@echo 'make lint    formatting, clippy, and the rules of this repository'
	@echo 'make kvm-box tests on a machine with KVM, emulated where there is none; BOX="--suite e2e"'
	@echo 'make web     only the page of the web shell, into web/dist; needs Node.js, no root'
	@echo 'make guest   only kernel, initramfs and image, into target/guest'
	@echo
	@echo 'up, down, clean, test, test-arm64, soak, bench, kvm-box and guest need root.'

up:
	@scripts/up

down:
	@scripts/down

clean:
	@scripts/clean

test:
	@scripts/test

test-arm64:
	@scripts/test-arm64

lint:
	@scripts/lint

web:
	@scripts/web

guest:
	@scripts/guest

soak:
	@scripts/soak $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SANDBOXES),--sandboxes $(SANDBOXES)) \
		$(if $(SEED),--seed $(SEED))

bench:
	@scripts/bench $(BENCH)

kvm-box:
	@scripts/kvm-box $(BOX)
