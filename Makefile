# `make launch` and `make test` are the two commands; `make` alone lists all of them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
export PATH := $(HOME)/.cargo/bin:$(PATH)

target := $(or $(CARGO_TARGET_DIR),target)
vmm := $(target)/release/vmm

# launch: the topology, the node and the address whose path is shown.
TOPOLOGY := configs/imunes-figure3.json
FROM := pc2
TO := 10.0.4.2
HOPS := 10.0.3.1 10.0.2.1 10.0.1.1 10.0.4.2
ENGINE := auto

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: launch
launch: build image ## Launch the network of the IMUNES paper and show a traceroute through it; CHECK=1 ends after that
	@lab=$$(basename $(TOPOLOGY) .json)
	trap '$(vmm) stop "$$lab" >/dev/null 2>&1 || true' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	$(vmm) launch -d --engine $(ENGINE) $(TOPOLOGY)
	echo
	echo "==> traceroute from $(FROM) to $(TO)"
	trace=$$($(vmm) exec --lab "$$lab" $(FROM) -- traceroute -n $(TO)) || {
	    echo "$$trace"
	    echo "make launch: traceroute failed" >&2
	    exit 1
	}
	echo "$$trace"
	if [ "$(CHECK)" = 1 ]; then
	    hops=$$(awk '$$1 ~ /^[0-9]+$$/ { printf "%s%s", sep, $$2; sep = " " }' <<<"$$trace")
	    if [ "$$hops" != "$(HOPS)" ]; then
	        echo "make launch: the path is '$$hops', not '$(HOPS)'" >&2
	        exit 1
	    fi
	    echo "==> the path is as in the paper"
	    exit 0
	fi
	echo
	echo "The lab runs until Ctrl-C. In another terminal:"
	echo "  $(vmm) shell $(FROM)"
	echo "  $(vmm) ls $$lab"
	while $(vmm) ls "$$lab" --json >/dev/null 2>&1; do sleep 1; done

.PHONY: build
build: ## Build the release programs vmm and vswitch
	@.ci/setup build
	cargo build --release --locked -p vmm -p vswitch

.PHONY: image
image: ## Build the guest image (kernel and root file system), if the cache has none of this recipe
	@.ci/setup build
	guest-image/build

.PHONY: test
test: lint image ## Check and test everything, with real guests under QEMU and under KVM in a nested host
	@.ci/setup test
	cargo build --workspace --bins --locked
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	status=0
	# What cannot run here, and why: nextest only counts it.
	cargo test --quiet --workspace --locked --test e2e -- --list --ignored >/dev/null
	cargo nextest run --workspace --locked --no-fail-fast 2>&1 | tee "$$log" || status=$$?
	.ci/summary <"$$log" || status=1
	exit $$status

.PHONY: lint
lint: ## Check formatting, lints, licences and advisories
	@.ci/setup lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --locked check bans licenses sources
	if cargo deny fetch >/dev/null 2>&1; then
	    cargo deny --locked check advisories
	else
	    echo "SKIP advisories: the RustSec database cannot be reached from here"
	fi

.PHONY: clean
clean: ## Remove what was built here; the image cache stays
	cargo clean
