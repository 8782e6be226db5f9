# make demo    a tunnel over a lossy link, shown at work
# make test    all tests
# make check   lint, format, types and the import table
# make bench   throughput, CPU and memory
# make test-router the OpenWrt service on OpenWrt's own procd, ubus and uci (root; builds them from ../shared/openwrt)
# make test-luci   the LuCI pages in a headless browser (needs Debian's chromium and chromium-driver)
# make test-install the packages, the units, the image and shadowsocks' plug-in (root; needs what CONTRIBUTING.md says)
# make test-monitor the monitor in a terminal, a browser and Prometheus (Debian: tmux chromium chromium-driver prometheus)
#
# Needs Python 3.11 or later with its venv module; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What builds and runs a router of OpenWrt's parts; not part of this project.
OPENWRT ?= ../shared/openwrt

.PHONY: demo test check bench test-router test-luci test-install test-monitor clean

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict kcptun_lite
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(VENV)/installed
	$(BIN)/python tools/bench_tunnel.py

test-router: $(VENV)/installed-test build/openwrt/sbin/procd
	OPENWRT=$(OPENWRT) OPENWRT_PARTS=build/openwrt $(BIN)/python -m pytest $(wildcard tests/openwrt/check_*.py)

build/openwrt/sbin/procd:
	@[ -x $(OPENWRT)/build.sh ] && [ -x $(OPENWRT)/run.sh ] || \
		{ echo "$(OPENWRT) is missing: build.sh and run.sh, which make a router of OpenWrt's parts; name it with OPENWRT=..." >&2; exit 1; }
	$(OPENWRT)/build.sh build/openwrt

test-luci: $(VENV)/installed-tools
	$(BIN)/python -m pytest tests/openwrt/luci/check_views.py

test-install: $(VENV)/installed-tools
	$(BIN)/python -m pytest $(wildcard tests/install/check_*.py)

test-monitor: $(VENV)/installed-tools
	$(BIN)/python -m pytest $(wildcard tests/monitor/check_*.py)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# An editable install: what runs is always the checkout.
$(VENV)/installed: setup.py pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,gcm,monitor]'
	touch $@

# What the heavier tests drive: browsers, builders of packages.
$(VENV)/installed-tools: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[packaging]' selenium
	touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "Python is missing: install Python 3.11 or later, or name it with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name a later one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make environments: install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
