# What developers type; `make help` lists it. The work is done by cargo and by the scripts named here.
#
# Big results (kernels, templates, disks) are cached outside the checkout, by the hash of what they are made from, so that
# only the first `make` on a machine takes long.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

DIST := target/dist
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)
PROGRAMS := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/release

# Cargo runs tests and benchmarks through these, which take them to a KVM with an unmodified kernel: this machine's, or the lab's.
test test-share: export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/tests/lab/runner
bench: export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := $(CURDIR)/benches/runner

.DEFAULT_GOAL := help
.PHONY: help run build kernel template test test-share lint bench bench-virtual bench-network bench-share lab install deps

help: ## show this
	@echo "Coracle: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo "The first build on a machine takes about 20 minutes, most of it two kernels; later ones take seconds to 2 minutes."

run: build ## open a sandbox on this directory; without a terminal, run one command in it and print its timings
	@.ci/demo

build: deps ## build all that a user installs, into target/dist
	@if [[ ! -x $(PROGRAMS)/coracle ]]; then echo "build: compiling the programs (2 to 4 minutes the first time) ..."; fi
	cargo build --quiet --release --locked -p cli -p init
	@rootfs/prefix.sh $(PROGRAMS) $(DIST)

kernel: deps ## build the guest's kernel, and print where it is
	@kernel-config/build.sh guest

template: build ## build the template of AGENT (default shell; shell with REFRESH=1: from today's Debian packages)
	@$(if $(filter-out shell,$(AGENT)),.ci/template $(AGENT),rootfs/build.sh $(if $(REFRESH),--refresh) shell)

test: build ## run all tests: units, devices, tiny guests on this machine's KVM, and the suite in the lab
	@.ci/test

test-share: build ## run the tests of a share at their full length: 4 million operations of fsx, 10,000 rounds of git (hours)
	CORACLE_SUITES=$$(tests/suites/build.sh) CORACLE_SHARE_LONG=1 cargo test -p vmm --locked virtio::fs
	CORACLE_SHARE_LONG=1 cargo test -p tests --test lab --locked -- coherence:: posix::

lint: deps ## check the format, the lints, the scripts, and the dependencies' licences
	@.ci/lint

bench: build ## measure starts and sessions by criterion on this machine's KVM, else in the lab; the share only on a KVM
	cargo bench --locked -p benches

bench-virtual: build ## measure in the lab's virtual time, beside QEMU microvm, against the committed budget
	@benches/virtual

bench-network: build ## measure a sandbox's way out beside slirp4netns's and pasta's, in the lab (about 2 minutes)
	@benches/network

bench-share: build ## measure a share beside the guest's own disk, in the lab (about 5 minutes)
	@benches/share

lab: build ## open a shell in the lab host, which has a real KVM and Coracle installed
	@tests/lab/run --tty -- bash -l

install: ## install what `make build` made; PREFIX=/usr/local for root, else ~/.local
	@if [[ ! -x $(DIST)/bin/coracle ]]; then echo "nothing is built yet; run make build" >&2; exit 1; fi
	mkdir -p "$(DESTDIR)$(PREFIX)"
	cp -R --no-preserve=ownership --preserve=mode,timestamps --sparse=always --remove-destination $(DIST)/. "$(DESTDIR)$(PREFIX)"
	@if [[ ":$$PATH:" != *":$(PREFIX)/bin:"* ]]; then echo "note: $(PREFIX)/bin is not in your PATH"; fi

deps:
	@.ci/deps.sh
