# make demo    train once on handwritten digits, see the population, take a subnet out (under 3 minutes)
# make test    the tests (7 to 9 minutes)            make check       lint, format, types
# make test-long      the tests that take long: kills at many moments, whole studies
# make docs    the documentation's site, into build/site
# make wheel   build the package                    make test-ray    the tests that start a Ray (installs it: 70 MB)
# make fuzz    damages files of every kind at random and counts what is believed: make fuzz DAMAGES=1000000 SEED=7 (hours)
# make test-browser   the report in a headless Chromium (Debian: apt-get install chromium chromium-driver)
# make test-lowest    the story with the lowest versions allowed of what is needed (in an environment of its own)
# make test-export    exports that need OpenVINO, ExecuTorch, Core ML, LiteRT, ncnn or TFLite Micro (installs them: 490 MB)
# make bench   speed against the plain way (about ten minutes, on a machine that does nothing else)

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
DAMAGES ?= 100000
SEED ?= 0
DEMO := runs/demo
INSTALLED := $(VENV)/.installed
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: demo test test-long fuzz test-ray test-browser test-lowest test-export bench check format docs wheel clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf $(DEMO)
	trainonce train digits --recipe quick --epochs 60 --threads 1 --out $(DEMO)
	trainonce evaluate $(DEMO) --per-bucket 10
	trainonce draw $(DEMO) --out $(DEMO)/population.png
	trainonce report $(DEMO)
	trainonce extract $(DEMO) --max-macs 1.5 --test
	@echo
	@echo "That was one training. Now try:"
	@echo "  source $(VENV)/bin/activate"
	@echo "  trainonce extract $(DEMO) --max-macs 3 --test      # another device, without retraining"
	@echo "  trainonce train path/to/your/images --epochs 20      # your own images, one folder a class"
	@echo "  open $(DEMO)/report.html                             # all of it, in a browser"
	@echo "  trainonce list                                     # the training strategies"

test: $(INSTALLED)
	python -m pytest -q -n 2 --dist loadfile -m "not long and not browser and not ray and not lowest and not export"

test-long: $(INSTALLED)
	python -m pytest -q -n 2 --dist loadfile -m long

fuzz: $(INSTALLED)
	python -m tests.fuzzing --damages $(DAMAGES) --seed $(SEED) --out docs/results/fuzz.json

test-browser: $(INSTALLED)
	-python -c "from trainonce.export.web import runtime_files; runtime_files('npm')"  # else pages that compute are skipped
	python -m pytest -q -m browser

test-ray: $(INSTALLED)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	python -m pytest -q -m ray

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[plot,search,onnx,hub]' pytest pytest-timeout hypothesis
	touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q -o filterwarnings=default tests/test_lowest.py tests/pipeline/test_hub.py

test-export: $(INSTALLED)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,openvino,executorch,coreml,litert,ncnn,tflite-micro]'
	python -m pytest -q -m export

bench: $(INSTALLED)
	python benchmarks/train_step.py
	python benchmarks/population.py

check: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy

format: $(INSTALLED)
	ruff check --fix .
	ruff format .

docs: $(INSTALLED)
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --doctree-dir build/doctrees docs build/site
	@echo "Open build/site/index.html in a browser."

wheel: $(INSTALLED)
	python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(LOWEST) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
