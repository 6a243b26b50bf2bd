# Each target does all of its own set-up in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
# A CPU build is all that training the small models and the tests need: PyPI's brings 3 GB of CUDA and a Triton of its own.
# Where the index cannot be reached (a mirror of PyPI alone), pip takes what it finds elsewhere; empty asks for no other.
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test coverage lint model model-two-hours evidence offline-kit bench gpu-check clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is not Python 3.11 or later: make PYTHON=python3.11"; exit 1; }
	@test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || { echo "error: $(VENV) is there and no environment of Python: make VENV=another"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/runtime: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[text]"
	@touch $@

$(VENV)/dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url "$(TORCH_INDEX)") "$(TORCH)"
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	# Types only; its dependency is TensorRT itself, which does not come from PyPI.
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-deps tensorrt-stubs
	@touch $@ $(VENV)/runtime $(VENV)/sdk

$(VENV)/sdk: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[sdk]"
	@touch $@

demo: $(VENV)/runtime ## Install the runtime (no PyTorch) and answer for a series, with a picture
	$(BIN)/decipher-rt demo
	@echo; echo "And a real series, an echo-planar one that comes with nibabel:"
	$(BIN)/decipher-rt infer "$$($(BIN)/python -c 'import nibabel, pathlib; print(pathlib.Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz")')" -o decipher-rt-demo --png

lint: $(VENV)/dev ## ruff, mypy (strict) and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint sdk-test ## Install everything and pass lint, types, import contracts, ctest and pytest
	$(PYTEST) --durations=25

coverage: $(VENV)/dev sdk ## pytest once more, with the lines and branches that no test runs; slower
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

# Killed at any moment, both go on where they were.
RUNS ?= runs/tiny
TINY := train/configs/tiny
CACHED := --cache $(RUNS)/cache
# What a stage's configuration is changed by; nothing here, whatever the environment has.
MORE_SERIES :=
MORE_TEXT :=
MORE_ALIGN :=
MORE_TISSUE :=
MORE_DECODER :=
model: $(VENV)/dev ## Train the model that ships, on the CPU, and export it to runs/tiny/bundle
	$(BIN)/decipher-rt train ssl $(TINY)/ssl.yaml -o $(RUNS)/ssl $(CACHED) $(MORE_SERIES)
	$(BIN)/decipher-rt train text $(TINY)/text.yaml -o $(RUNS)/text $(MORE_TEXT)
	$(BIN)/decipher-rt train align $(TINY)/align.yaml -o $(RUNS)/align $(CACHED) encoder_from=$(RUNS)/ssl text_from=$(RUNS)/text $(MORE_SERIES) $(MORE_ALIGN)
	for name in sequence tissue brain_volume_ml lesion lesion_box; do \
		if [ $$name = tissue ]; then more="$(MORE_TISSUE)"; else more="$(MORE_DECODER)"; fi; \
		$(BIN)/decipher-rt train decoder $(TINY)/decoder-$$name.yaml -o $(RUNS)/model $(CACHED) encoder=$(RUNS)/align $$more || exit; done
	$(BIN)/decipher-rt export $(RUNS)/model -o $(RUNS)/bundle --fp16 --int8 --max-drop 2 $(CACHED)

# Fewer steps and series; what that costs is in docs/model-card.md.
model-two-hours: RUNS := runs/tiny-two-hours
model-two-hours: MORE_SERIES := source.train=4096
model-two-hours: MORE_TEXT := run.steps=800
model-two-hours: MORE_ALIGN := run.steps=1200
model-two-hours: MORE_TISSUE := run.steps=3600
model-two-hours: MORE_DECODER := run.steps=800
model-two-hours: model ## The same with fewer steps: two hours of training on two slow cores

CH2 ?= /usr/share/mricron/templates/ch2bet.nii.gz
evidence: $(VENV)/dev ## Measure the tables of docs/model-card.md on the model of 'make model', and bring them there
	$(BIN)/python benchmarks/evidence/training.py $(RUNS)
	$(BIN)/python benchmarks/evidence/held_out.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/zero_shot.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/token_dropping.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/margins.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/lesions.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/probe.py $(RUNS)/model $(CACHED) --also "without alignment=$(RUNS)/ssl"
	$(BIN)/python benchmarks/evidence/decoders.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/segmentation.py $(RUNS)/model $(CACHED)
	$(BIN)/python benchmarks/evidence/pretraining.py $(TINY)/ssl.yaml $(CACHED) --runs $(RUNS)/pretraining
	$(BIN)/python benchmarks/evidence/ablations.py $(TINY)/align.yaml --ssl $(RUNS)/ssl --text $(RUNS)/text $(CACHED) --runs $(RUNS)/ablations
	@test -e $(CH2) || { echo "no $(CH2): apt-get install mricron-data for the figures on another brain"; exit 1; }
	$(BIN)/python benchmarks/evidence/held_out.py $(RUNS)/model $(CACHED) --anatomy $(CH2) --json benchmarks/results/evidence-ch2.json
	$(BIN)/python benchmarks/evidence/probe.py $(RUNS)/model $(CACHED) --anatomy $(CH2) --json benchmarks/results/evidence-probe-ch2.json
	$(BIN)/python benchmarks/evidence/card.py

offline-kit: $(VENV)/runtime ## Collect wheels and bundle in dist/decipher-rt-offline-kit; installs without a network
	$(BIN)/python scripts/offline_kit.py dist/decipher-rt-offline-kit

bench: $(VENV)/runtime ## Fail where any stage has become more than 20 % slower than the committed figures
	$(BIN)/python benchmarks/guard.py

gpu-check: ## On a machine with a CUDA GPU, PyTorch and Triton: numerics and speed, written to benchmarks/results
	$(PYTHON) benchmarks/gpu_check.py

clean: ## Remove what the other targets made, but for runs/, which took hours
	rm -rf $(VENV) build dist decipher-rt-demo *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

# ---- the native SDK: see docs/embedding.md ---------------------------------------------------------------------------
SDK := build/sdk
SDK_BUNDLE ?= $(CURDIR)/decipher_rt/default/bundle
SDK_WHEELS = -DDECIPHER_RT_PYTHON_ENV="$$(cd $(VENV) && pwd)"
SDK_OPTIONS = $(SDK_WHEELS) -DDECIPHER_RT_TEST_BUNDLE="$(SDK_BUNDLE)"
.PHONY: sdk sdk-test sdk-deploy sdk-asan sdk-tsan sdk-valgrind sdk-fuzz sdk-soak sdk-cycles sdk-bench sdk-tensorrt sdk-aarch64 sdk-tools

sdk-tools:
	@for tool in cmake c++; do command -v $$tool >/dev/null || { echo "error: $$tool is not there: apt-get install cmake g++ make"; exit 1; }; done

sdk: $(VENV)/sdk sdk-tools ## Build libdecipher_rt, its worker, examples and tests in build/sdk
	cmake --preset release $(SDK_OPTIONS)
	cmake --build $(SDK) --parallel 2

sdk-test: sdk ## Build the SDK and run ctest
	ctest --test-dir $(SDK) --output-on-failure

sdk-deploy: sdk ## Collect in dist/decipher-rt-sdk what a machine without Python needs, with an SBOM
	$(BIN)/python scripts/collect_sdk.py $(SDK) dist/decipher-rt-sdk

sdk-asan: $(VENV)/sdk sdk-tools ## ctest under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --preset asan $(SDK_OPTIONS)
	cmake --build --preset asan --parallel 2
	ctest --preset asan

sdk-tsan: $(VENV)/sdk sdk-tools ## Two sessions in four threads under ThreadSanitizer
	cmake --preset tsan $(SDK_OPTIONS)
	cmake --build --preset tsan --parallel 2
	ctest --preset tsan -R two_sessions

sdk-valgrind: sdk ## One series through memcheck
	valgrind --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
		--num-callers=30 --suppressions=tests/native/suppressions/valgrind.supp $(SDK)/tests/native/soak "$(SDK_BUNDLE)" 2 2

sdk-fuzz: $(VENV)/sdk sdk-tools ## libFuzzer on manifest and slice input, 10 minutes each, side by side (needs clang)
	@command -v clang++ >/dev/null || { echo "error: clang++ is not there: apt-get install clang"; exit 1; }
	cmake --preset fuzz $(SDK_OPTIONS)
	cmake --build build/fuzz --parallel 2 --target fuzz_bundle fuzz_slices
	tests/native/fuzz/run.sh build/fuzz "$(SDK_BUNDLE)" 600

sdk-soak: sdk ## 1,000 runs in one process, and in a worker, without growth of memory
	$(SDK)/tests/native/soak "$(SDK_BUNDLE)" 1000 100
	$(SDK)/tests/native/soak "$(SDK_BUNDLE)" 1000 100 worker

sdk-cycles: sdk ## 1,000 times load, run, unload in one process, and 1,000 processes
	tests/native/proof/cycles.sh $(SDK) "$(SDK_BUNDLE)" 1000

sdk-bench: $(VENV)/dev sdk ## Cold start, warm and streaming latency beside Python's
	$(BIN)/python benchmarks/native.py

sdk-tensorrt: $(VENV)/sdk sdk-tools ## Build with the TensorRT headers of a PyPI wheel; ctest, on a played GPU too (no GPU needed)
	mkdir -p build/tensorrt-headers
	$(PIP) download --quiet --no-deps --dest build/tensorrt-headers kernel-lens==2.0.1
	cd build/tensorrt-headers && $(abspath $(BIN)/python) -m zipfile -e kernel_lens-2.0.1-*.whl .
	cmake -S . -B build/tensorrt -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDECIPHER_RT_TESTS=ON \
		$(SDK_OPTIONS) -DTENSORRT_INCLUDE_DIR="$(CURDIR)/build/tensorrt-headers/kernel_lens/include/tensorrt"
	cmake --build build/tensorrt --parallel 2
	ctest --test-dir build/tensorrt --output-on-failure --no-tests=error

# What the aarch64 build takes from wheels; DALI's and OpenVINO's versions are those of constraints.txt.
AARCH64_SITE := build/aarch64-wheels/lib/python3.11/site-packages
AARCH64_TAGS := $(foreach tag,2014_ _2_17_ _2_28_ _2_31_ _2_34_ _2_35_,--platform manylinux$(tag)aarch64)

$(AARCH64_SITE): $(CONSTRAINTS) | $(BIN)/python
	mkdir -p build/aarch64-download
	$(PIP) download --quiet --no-deps --only-binary=:all: $(AARCH64_TAGS) --python-version 3.11 \
		--dest build/aarch64-download $$(grep -E '^(openvino|nvidia-dali-cuda130)==' $(CONSTRAINTS))
	mkdir -p $@
	for wheel in build/aarch64-download/*.whl; do $(BIN)/python -m zipfile -e $$wheel $@; done

sdk-aarch64: $(VENV)/sdk sdk-tools $(AARCH64_SITE) ## Cross-compile for aarch64 and run ctest under qemu-user
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do command -v $$tool >/dev/null || { echo "error: $$tool is not there: apt-get install g++-aarch64-linux-gnu qemu-user-static"; exit 1; }; done
	cmake --preset aarch64 -DDECIPHER_RT_TEST_BUNDLE="$(SDK_BUNDLE)" \
		-DCUDA_INCLUDE_DIR="$$($(BIN)/python -c 'import triton, pathlib; print(pathlib.Path(triton.__file__).parent / "backends/nvidia/include")')" \
		-DNLOHMANN_JSON_INCLUDE_DIR="$$(cd $(VENV)/lib/python3*/site-packages/nlohmann_json/include && pwd)"
	cmake --build --preset aarch64 --parallel 2
	ctest --preset aarch64 -E 'guest_test|soak|two_sessions|cycle'
