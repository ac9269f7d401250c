# Every target sets up what it needs: system packages (as root, with apt), .venv, this package, the model.
.PHONY: help quickstart test test-page test-boards test-installed lint format bench soak aarch64 test-aarch64 x86_64 test-x86_64 pyz clean
.DEFAULT_GOAL := help
PY := .venv/bin/python
C_SOURCES = $(shell find runtime/sim tests -name '*.[ch]' -o -name '*.cpp' -o -name '*.inc')
# Another build of llama.cpp to compare with: make bench BENCH_VENV=build/bench-avx2
#   LLAMA_CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
# In some virtual machines llama.cpp's AMX code crashes: then add -DGGML_AVX512=ON and its parts to these.
export BENCH_VENV ?= build/bench-venv
export LLAMA_CMAKE_ARGS

help:  ## what there is to make
	@sed -n 's/^\([a-z0-9_-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart:  ## a real model, quantised three ways, each answering a question, and one deployed to a simulated board (about 2 minutes)
	@.ci/setup system
	@$$(.ci/setup python) tests/quickstart.py

test: ready  ## the tests, two files at a time
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-page: ready  ## the chat page in Chromium (installed as root; skipped where there is none)
	@.ci/setup browser
	@$(PY) -m tests.page

test-boards: ready  ## deployments to boards with systemd, in containers (as root), and each fault of the network and the board
	@$(PY) -m pytest -s -m slow tests/deploy/test_deploy_service.py 'tests/deploy/test_deploy_faults.py::test_each_fault[2]'

test-installed: ready  ## the wheel in fresh environments of the newest Python and of 3.9, from convert to deploy
	@$(PY) -m tests.installed

lint: ready  ## ruff, mypy --strict, clang-format, the chat page's types
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m tests.page.types
	@.venv/bin/clang-format --dry-run --Werror $(C_SOURCES)

format: ready  ## clang-format over the C and C++ sources
	@.venv/bin/clang-format -i $(C_SOURCES)

bench: ready  ## speed beside llama.cpp, which it compiles first, and scp (half an hour, 26 GB of disk)
	@$(PY) -m tests.bench.predict_table
	@$(PY) -m tests.bench.upload
	@.ci/setup bench
	@$(PY) -m tests.bench.converter_vs_llama --full --llama-python $(BENCH_VENV)/bin/python
	@$(PY) -m tests.bench.twin_vs_llama --llama-python $(BENCH_VENV)/bin/python $(ARGS)
	@.ci/setup real
	@for model in Qwen2.5-Coder-0.5B Llama-3.2-1B-shape; do $(PY) -m tests.bench.twin_vs_llama --model $$model \
	  --dtypes w8a8,w8a8_g128,w8a8_g256,w8a8_g512 --llama-python $(BENCH_VENV)/bin/python || exit 1; done
	@$(PY) -m tests.bench.daemon --llama-python $(BENCH_VENV)/bin/python

soak: ready  ## the long forms of the tests, and ten minutes of fuzzing
	@.ci/setup litellm torch real
	@PYTHONPATH=.:convert:runtime build/torch-venv/bin/python tests/real_llama_cpp.py
	@$(PY) -m pytest -m "slow or not slow" --hypothesis-profile=soak $(ARGS)
	@.ci/setup clang
	@$(PY) -m tests.fuzz.run --seconds 600

aarch64: ready  ## the libraries for a board (glibc 2.28 or newer), cross-compiled into build/aarch64
	@.ci/setup zig
	@$(PY) -m cmake -S . -B build/aarch64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtime/sim/cmake/zig.cmake \
	  -DRKSIM_PYTHON=$(CURDIR)/$(PY) -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja
	@$(PY) -m cmake --build build/aarch64

test-aarch64: aarch64  ## they give the same logits under qemu-user as here, and rkchatd.pyz the same answer
	@.ci/setup qemu
	@$(PY) -m tests.aarch64
	@$(PY) -m tests.aarch64_daemon

x86_64: ready  ## the libraries for old distributions (glibc 2.17 or newer), into build/x86_64
	@.ci/setup zig
	@$(PY) -m cmake -S . -B build/x86_64 -G Ninja -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtime/sim/cmake/zig.cmake \
	  -DRKSIM_TARGET=x86_64-linux-gnu.2.17 -DRKSIM_PYTHON=$(CURDIR)/$(PY) \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja
	@$(PY) -m cmake --build build/x86_64

test-x86_64: x86_64  ## they need no newer glibc, and give the same logits as those compiled here
	@$(PY) -m tests.x86_64

pyz: ready  ## build/rkchatd.pyz: the daemon in one file, for any Python from 3.9 on
	@$(PY) runtime/tools/make_pyz.py build/rkchatd.pyz

clean:  ## remove .venv, builds, caches and the quickstart's bundles
	rm -rf .venv build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: ready
ready:
	@.ci/setup system venv install=test model pyz node board
