# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
ROUTE ?= term
JOBS ?= 2
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0
export MPLBACKEND ?= agg
ifneq ($(POSETUTOR_DATA),)
override POSETUTOR_DATA := $(abspath $(POSETUTOR_DATA))
export POSETUTOR_DATA
endif

# notebooks of more than ten seconds run once in `make test`, under nbval; nbdev_test runs the others, and all of them where LONG=none, as on GitHub
LONG ?= 00|13|15|20|21|23|24|25|26|27|29|30|31|32|33|34|35|36|40|41|42|43|44|45|50|58|59|64

.PHONY: help setup quickstart test test-browser lab slides zip site notebooks claims readme bench clean

help:
	@echo "make quickstart [DATA=folder]  set up .venv, run the quickstart notebook, print its scores, leave an HTML page in _out/"
	@echo "make test                      set up .venv, run every notebook and test"
	@echo "make test-browser              drive JupyterLab, slides and site (make site first) in a real browser, screenshots in _out/browser"
	@echo "make lab                       set up .venv, open JupyterLab on the course"
	@echo "make slides                    write the slides of all chapters to _out/slides"
	@echo "make zip [ROUTE=term]          pack a route: notebooks for students and teacher, slides, data, plan"
	@echo "make site                      build the site from the stored notebooks into _out/site and check it"
	@echo "make claims                    write course/claims.md and claims.json from the stored notebooks"
	@echo "make notebooks                 re-run all notebooks in place and store their outputs"
	@echo "make readme                    write README.md from nbs/index.ipynb"
	@echo "make bench                     print the measured ratios of bench/"

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

quickstart: setup
	OMP_NUM_THREADS=$(JOBS) $(BIN)/python course/quickstart.py $(if $(DATA),--data "$(DATA)")

test: setup
	$(BIN)/ruff check posetutor course tests bench setup.py
	$(BIN)/nbdev_test --n_workers $(JOBS) --timing --skip_file_re '^([_.]|($(LONG))_)'
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --nbval-lax --nbval-kernel-name python3 --junitxml=_out/tests.xml tests nbs

test-browser: setup
	$(BIN)/python tests/browser/get_browser.py
	$(BIN)/python -m pytest tests/browser -rs -s --junitxml=_out/browser/tests.xml

lab: setup
	$(BIN)/posetutor lab course_copy

slides: setup
	$(BIN)/posetutor slides --out _out/slides

zip: setup
	$(BIN)/posetutor zip $(ROUTE) --out _out/$(ROUTE).zip

site: setup
	$(BIN)/python course/build_site.py

claims: setup
	$(BIN)/python course/claims.py

notebooks: setup
	$(BIN)/python course/build_notebook.py --all
	$(BIN)/python course/links.py

readme: setup
	$(BIN)/python course/readme.py

bench: setup
	for script in bench/bench_*.py; do OMP_NUM_THREADS=2 $(BIN)/python $$script || exit 1; done

clean:
	rm -rf _out build dist *.egg-info
