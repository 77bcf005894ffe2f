# What people and scripts call; `make help` lists it. Each target may be called by itself and any number of times.

CARGO ?= cargo
# Where the end-to-end tests and the demo find what they start. `make demo` sets the first to the release binary.
export STERNA_BIN ?= $(CURDIR)/target/debug/sterna
export STERNA_GUEST ?= $(CURDIR)/target/guest.qcow2
export STERNA_DEBIAN ?= $(CURDIR)/target/debian.qcow2
# Where a test writes what must never happen. One file there fails the run, also if a second try of the test went well.
export STERNA_BROKEN_PROMISES := $(CURDIR)/target/broken-promises

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build guest demo test lint rules deny tidy fmt bench soak deb clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-8s %s\n", $$1, $$2 }'

setup: ## install what building and running needs (asks for root only if something is missing)
	scripts/setup.sh run

# One call for all that is run from it, so that the dependencies are compiled once.
build: setup guest ## build target/release/sterna and target/guest.qcow2
	$(CARGO) build --locked --release --package sterna --package e2e --package bench --features sterna/jemalloc

guest: ## build the tiny guest that tests and the demo boot
	guest/build.sh target/guest.qcow2

demo: STERNA_BIN := $(CURDIR)/target/release/sterna
demo: build ## three hosts on this machine, a VM, a live migration: watch it happen
	target/release/demo

# All in the dev profile and all crates in one call, so that each is compiled once; by clippy, which is the compiler with more
# warnings: to check everything for it first, and then compile, took some two minutes more. Tests come last: their summary is
# the last thing printed. Some wait more than they compute, so one more than there are processors is begun; how many of them have
# guests is bounded by .config/nextest.toml.
test: checked := RUSTC_WORKSPACE_WRAPPER=clippy-driver RUSTFLAGS='-D warnings'
test: export NEXTEST_TEST_THREADS ?= $(shell expr $$(nproc) + 1)
test: ## everything that must hold before a change goes in
	scripts/setup.sh test
	$(checked) $(MAKE) --no-print-directory rules
	$(checked) $(CARGO) build --locked --workspace --bins --tests
	$(MAKE) --no-print-directory guest
	rm -rf $(STERNA_BROKEN_PROMISES)
	$(checked) $(CARGO) nextest run --locked --workspace
	@! cat $(STERNA_BROKEN_PROMISES)/* 2>/dev/null

lint: rules ## what `make test` checks without running anything, and documentation's links
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --locked --workspace --no-deps --quiet

rules: deny ## formatting, dependencies, house rules
	$(CARGO) fmt --all --check
	$(CARGO) xtask tidy

# The advisories are a repository of their own: without a network, the rest is still checked.
deny: ## licences, sources and bans of what is depended on, and known vulnerabilities
	$(CARGO) deny --log-level error check bans licenses sources
	@if $(CARGO) deny --log-level off fetch db; then \
	    $(CARGO) deny --log-level error check --disable-fetch advisories; \
	else \
	    echo 'deny: the advisory database cannot be fetched: known vulnerabilities were NOT checked'; \
	fi

tidy: ## the house rules alone
	$(CARGO) xtask tidy

fmt: ## format the code
	$(CARGO) fmt --all

bench: STERNA_BIN := $(CURDIR)/target/release/sterna
bench: build ## what Sterna adds to bare QEMU and SQLite, as ratios; of one thing by WHAT=store, boots, moves, drain, changes, cli, api, watchers, size, scheduling, start, simulation, import, memory, move, clone, prepared, instant, ways
	target/release/bench $(WHAT)

soak: ## the long tests, which `make test` leaves out
	scripts/setup.sh soak
	$(MAKE) --no-print-directory lint
	$(CARGO) build --locked --workspace --bins --tests --features sterna/jemalloc
	$(MAKE) --no-print-directory guest
	guest/debian.sh target/debian.qcow2
	rm -rf $(STERNA_BROKEN_PROMISES)
	$(CARGO) nextest run --locked --workspace --features sterna/jemalloc --profile soak --run-ignored only
	@! cat $(STERNA_BROKEN_PROMISES)/* 2>/dev/null

# In a directory of its own, so that what is found there is what was built now.
deb: ## build the Debian package below target/debian, and check it
	scripts/setup.sh deb
	rm -rf target/debian target/man
	$(CARGO) build --locked --release --package sterna --features sterna/jemalloc
	target/release/sterna manual target/man
	$(CARGO) deb --quiet --locked --no-dbgsym --strip --package sterna --output target/debian/
	packaging/check.sh target/debian/sterna_*.deb

clean: ## remove all that was built
	$(CARGO) clean
