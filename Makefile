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

# bench: the folder for what is found.
FIGURES := $(target)/figures

# bench-scale: how many nodes, lab after lab, and the memory of the nested host.
NODES := 1,10,25,50
NESTED_MEMORY := 8G

# soak, attacks: percent of what is done.
SOAK := 100

# fuzz: how long each target runs, and how many inputs at most; 0 seconds: as long as that takes, -1: no matter how many.
FUZZ_SECONDS := 60
FUZZ_RUNS := -1
FUZZ_TARGETS := ring chain messages agent_protocol requests pci virtio_blk topology_file

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

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
	# What each program is made of is in it: `cargo audit bin` and others read that.
	cargo auditable build --release --locked -p vmm -p vswitch

.PHONY: image
image: ## Build the guest image (kernel and root file system), if the cache has none of this recipe
	@.ci/setup build
	guest-image/build

.PHONY: image-check
image-check: image ## Build the guest image again, from nothing, and compare: ARGS=--kernel the kernel too, which takes minutes
	guest-image/check $(ARGS)

.PHONY: sbom
sbom: build image ## Write what the programs and the guest image are made of (CycloneDX) to target/sbom
	@.ci/setup sbom
	mkdir -p $(target)/sbom
	for program in vmm vswitch; do
	    readelf -S --wide $(target)/release/$$program | grep -q '[.]dep-v0' || { echo "make sbom: $$program does not say what is in it" >&2; exit 1; }
	    cargo cyclonedx --quiet --format json --manifest-path $$program/Cargo.toml --describe binaries --target x86_64-unknown-linux-gnu
	    mv $$program/$${program}_bin.cdx.json $(target)/sbom/$$program.cdx.json
	done
	guest-image/sbom >$(target)/sbom/guest-image.cdx.json
	ls -l $(target)/sbom

.PHONY: test
test: lint image image-check ## Check and test everything, with real guests under QEMU and under KVM in a nested host
	@.ci/setup test
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	status=0
	# One build for all: the programs that the end-to-end tests run are built for the tests of their own crates.
	cargo nextest run --workspace --locked --no-fail-fast 2>&1 | tee "$$log" || status=$$?
	# What cannot run here, and why: nextest only counts it.
	cargo test --quiet --workspace --locked --test e2e -- --list --ignored >/dev/null
	.ci/summary <"$$log" || status=1
	exit $$status

.PHONY: fuzz
fuzz: ## Fuzz what hostile guests, front-ends and files can reach, each target for FUZZ_SECONDS (60)
	@.ci/setup fuzz
	# A stable compiler, with the sanitizers it ships.
	export RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_LTO=off
	cargo fuzz build --features libfuzzer
	for name in $(FUZZ_TARGETS); do
	    echo "==> $$name for $(FUZZ_SECONDS) s"
	    found=$(target)/fuzz/$$name
	    mkdir -p "$$found"
	    log=$$(mktemp)
	    cargo fuzz run --features libfuzzer "$$name" "$$found" "fuzz/corpus/$$name" -- \
	        -max_total_time=$(FUZZ_SECONDS) -runs=$(FUZZ_RUNS) -timeout=60 -max_len=2048 >"$$log" 2>&1 || {
	        tail -n 60 "$$log"
	        rm "$$log"
	        echo "make fuzz: $$name failed; the input is in fuzz/artifacts/$$name" >&2
	        exit 1
	    }
	    # Of all times, for the table of attacks.
	    runs=$$(($$(awk '/^Done/ { print $$2 }' "$$log") + $$(cat "$$found.runs" 2>/dev/null || echo 0)))
	    echo "$$runs" >"$$found.runs"
	    edges=$$(grep -aoE 'cov: [0-9]+' "$$log" | tail -n 1)
	    grep -a '^Done' "$$log"
	    echo "    $$runs inputs in all, $${edges#cov: } edges reached"
	    rm "$$log"
	done

.PHONY: fuzz-long
fuzz-long: ## The same for hours, each target until it has run FUZZ_RUNS (1000000000) inputs
	@$(MAKE) fuzz FUZZ_SECONDS=0 FUZZ_RUNS=1000000000

.PHONY: soak
soak: build image ## Faults by the hundred and launches by the thousand, for hours; SOAK=10 does a tenth of it
	@.ci/setup test
	SOAK=$(SOAK) cargo nextest run --locked -p tests --features soak --test soak --profile soak

.PHONY: attacks
attacks: image ## Attack everything again and write the table of attacks in docs/isolation.md; SOAK=10 does a tenth of the faults
	@.ci/setup test
	SOAK=$(SOAK) .ci/attacks

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

.PHONY: bench-switch
bench-switch: ## Measure the switch beside Open vSwitch, DPDK and a plain back-end; ARGS=--help tells more
	@.ci/setup bench
	cargo build --release --locked -p vswitch -p oracle -p bench
	$(target)/release/bench-switch --vswitch $(target)/release/vswitch --oracle $(target)/release/oracle --json $(target)/bench-switch.json $(ARGS)

.PHONY: bench
bench: build image ## Measure engines side by side, with plots and a page in FIGURES
	@.ci/setup test
	$(vmm) bench all --out $(FIGURES) $(ARGS)

.PHONY: bench-scale
bench-scale: build image ## Measure what a node costs, lab after lab of NODES; in the nested KVM host where this machine has no KVM
	@.ci/setup bench
	cargo build --release --locked -p bench
	measure=($(target)/release/bench-scale --vmm $(vmm) --nodes $(NODES) $(ARGS))
	if grep -qwE 'vmx|svm' /proc/cpuinfo && [ -w /dev/kvm ]; then
	    "$${measure[@]}"
	else
	    echo "==> in the nested KVM host: times compare, they say nothing about hardware"
	    tests/nested/run --memory $(NESTED_MEMORY) --timeout 3000 -- "$${measure[@]}"
	fi

.PHONY: pictures
pictures: build image ## Make the pictures of the README anew, from a real lab
	@.ci/setup pictures
	VMM=$(vmm) ENGINE=$(ENGINE) docs/pictures/make

.PHONY: clean
clean: ## Remove what was built here; the image cache stays
	cargo clean
