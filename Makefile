# `make help` lists the targets. Values with spaces go in quotes: make run PORT=8001 ARGS="--fan-out 3".
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# More options for pip, such as another index with a smaller torch.
PIP_OPTIONS ?=

# A misspelt variable would be left out silently, and with it perhaps the key of a private network.
KNOWN := PYTHON VENV PIP_OPTIONS PORT BOOT SHARD STATE DATA DATA_DIR MODEL TAGS ARGS NET_ARGS LISTEN NETWORK_KEY TRUST \
	HOSTS OUT SECONDS MINUTES PEERS KILL BOUND GRID SEEDS FUZZ_SECONDS SHELL
GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command line,$(origin $(v))),$(v)))
UNKNOWN := $(filter-out $(KNOWN) MAKE%,$(GIVEN))
$(if $(UNKNOWN),$(error no such variable here: $(UNKNOWN); make help lists them))

# One shell word, and --name='value' for a variable that has one.
quoted = '$(subst ','\'',$(1))'
option = $(if $($(2)),--$(1)=$(call quoted,$($(2))))
SCRIPTS := $(BIN)/python -m scripts
# What a peer is started with, alone or on many hosts.
PEER = $(call option,data,DATA) $(call option,data-dir,DATA_DIR) $(call option,model,MODEL) $(call option,tags,TAGS) \
	$(call option,args,ARGS) $(call option,net-args,NET_ARGS) $(call option,host,LISTEN) \
	$(call option,network-key,NETWORK_KEY) $(call option,trust,TRUST)

.PHONY: help setup proto check test test-slow test-lab fuzz run demo launch stop paper attack bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e '.[train,dev]'
	@touch $@

setup: $(STAMP) ## make .venv and install everything into it

PROTOS := $(wildcard proto/p2pfl_proto/v1/*.proto)
proto: $(STAMP) ## generate the gRPC modules beside the .proto files
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(PROTOS)

check: $(STAMP) ## lint, types, import contracts, drift of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/check_proto_drift.sh $(BIN)/python

test: $(STAMP) ## all tests but the slow ones; those of the lab skip without an sshd, see test-lab
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-lab: $(STAMP) ## launch and stop through a real sshd, which root gets from apt-get
	scripts/install_sshd.sh
	$(BIN)/python -m pytest -m lab

FUZZ_SECONDS ?= 60
FUZZ_STAMP := $(VENV)/.fuzz-installed
$(FUZZ_STAMP): $(STAMP)
	@if $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e '.[fuzz]' 2>/dev/null; then touch $@; fi

fuzz: $(FUZZ_STAMP) ## damaged input to every decoder, led by coverage; what breaks one goes to report/fuzz: [FUZZ_SECONDS=60]
	@$(BIN)/python -m scripts.fuzz --seconds $(call quoted,$(FUZZ_SECONDS))

run: $(STAMP) ## one peer until Ctrl-C: PORT=8001 BOOT=host:8000, or BOOT=auto on a LAN [DATA= DATA_DIR= SHARD=1/10 MODEL= TAGS= NETWORK_KEY= TRUST=approve STATE= ARGS= NET_ARGS=]
	@$(SCRIPTS) run --port=$(call quoted,$(PORT)) $(call option,boot,BOOT) $(call option,shard,SHARD) \
		$(call option,state,STATE) $(PEER)

demo: $(STAMP) ## a small network learns in front of you, in about a minute: [SECONDS=40 OUT=]
	@$(SCRIPTS) demo $(call option,out,OUT) $(call option,seconds,SECONDS)

launch: $(STAMP) ## start peers over ssh, each booted to the one before: HOSTS=hosts.txt [BOOT=host:8000|auto DATA= MODEL= TAGS= NETWORK_KEY= TRUST= ARGS= NET_ARGS=]
	@$(SCRIPTS) launch $(call option,hosts,HOSTS) $(call option,boot,BOOT) $(PEER)

stop: $(STAMP) ## end the peers that make launch started: HOSTS=hosts.txt
	@$(SCRIPTS) stop $(call option,hosts,HOSTS)

paper: $(STAMP) ## the paper's experiment and its report: [DATA_DIR= MODEL=paper-cnn MINUTES=10 PEERS=10 KILL=1 OUT=]
	@$(SCRIPTS) paper $(call option,data,DATA) $(call option,data-dir,DATA_DIR) $(call option,model,MODEL) \
		$(call option,minutes,MINUTES) $(call option,peers,PEERS) $(call option,out,OUT) \
		$(call option,args,ARGS) $(if $(filter-out 0,$(KILL)),--kill)

# Other libraries with aggregation rules, apart from our packages: Flower pins an older protobuf. Without them
# the benchmark says so and goes on.
RIVALS_STAMP := $(VENV)/.rivals-installed
FLOWER := 'flwr>=1.42,<1.43' 'httpx<1' idna 'iterators<0.0.3' 'pycryptodome<4'
BYZPY := 'byzpy>=0.1.4,<0.2'
TO_RIVALS = $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --no-deps --upgrade \
	--target $(VENV)/rivals
$(RIVALS_STAMP): $(STAMP)
	@flower=0; $(TO_RIVALS) $(FLOWER) 2>/dev/null || flower=1; \
		if $(TO_RIVALS) $(BYZPY) 2>/dev/null && [ $$flower = 0 ]; then touch $@; fi

attack: $(STAMP) ## your task under every kind of liar; fails when honest peers end below BOUND: [DATA= DATA_DIR= MODEL= BOUND=0.85 SEEDS=0 GRID=gate|mnist OUT= ARGS=]
	@$(SCRIPTS) attack $(call option,data,DATA) $(call option,data-dir,DATA_DIR) $(call option,model,MODEL) \
		$(call option,bound,BOUND) $(call option,seeds,SEEDS) $(call option,grid,GRID) $(call option,out,OUT) \
		$(call option,args,ARGS)

bench: $(RIVALS_STAMP) ## the benchmarks: a table, and JSON in report/bench.json
	@$(BIN)/python -m scripts.bench.run_all

clean: ## remove caches and build folders; .venv, state and report stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
