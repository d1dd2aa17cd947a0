# demo   draw data, pre-train, evaluate: one table, one picture (CPU, a few minutes)
# test   whole test suite            test-fast   quick tests for use while editing (under a minute)
# sync   copy data/ models/ utils/ from pretrain/ to segmentation/
# mine   masks, clusters, pictures and a page from a folder: make mine IMAGES=DIR [CLUSTERS=N|auto] [NAME=mine] [MODEL=...]
#        [WEIGHTS=auto|none|FILE|timm://...] [TRAIN=1] [NAMES=names.yml] [OBJECTS=parts|cuts]
# segment  assign other photographs to the clusters of `mine`: make segment NAME=mine IMAGES=DIR [NAMES=names.yml]
# soak   long reliability tests: real kills, real signals (20 minutes at most)
# gpu    checks and measurements that need a GPU: one table, in ten minutes (ARGS="--only losses steps")
# bench  the benchmarks of a CPU, into the table of docs/performance.md (8 minutes)
# lint   ruff and mypy               reproduce  the published tables, given PASCAL VOC (ARGS="--fetch" gets the weights)
# clean  remove what the commands above made (never datasets/ or output/)

PYTHON ?= python3
NAME = mine
BIN := .venv/bin
TWINS := data models utils

# From inside a script tree
PY := ../$(BIN)/python
ENV := --config_env configs/env.yml

.PHONY: demo mine segment reproduce test test-fast soak gpu bench lint sync clean
.DELETE_ON_ERROR:

# The stamp is made last, so that an interrupted installation starts over.
.venv/installed: requirements.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/installed
	cd pretrain && $(PY) main.py $(ENV) --config_exp configs/demo.yml --world-size 1
	cd segmentation && $(PY) kmeans.py $(ENV) --config_exp configs/demo/demo_kmeans_untrained.yml
	cd segmentation && $(PY) kmeans.py $(ENV) --config_exp configs/demo/demo_kmeans_given_masks.yml
	cd segmentation && $(PY) kmeans.py $(ENV) --config_exp configs/demo/demo_kmeans.yml
	cd segmentation && $(PY) retrieval.py $(ENV) --amp auto --config_exp configs/demo/demo_retrieval_untrained.yml
	cd segmentation && $(PY) retrieval.py $(ENV) --amp auto --config_exp configs/demo/demo_retrieval.yml
	cd segmentation && $(PY) linear_finetune.py $(ENV) --amp auto --config_exp configs/demo/demo_linear_untrained.yml
	cd segmentation && $(PY) linear_finetune.py $(ENV) --amp auto --config_exp configs/demo/demo_linear.yml
	cd segmentation && $(PY) eval.py $(ENV) --amp auto --config_exp configs/demo/demo_linear.yml \
	  --state-dict ../output/demo_linear/best_model.pth.tar --crf-postprocess --num_visualizations 24
	cd segmentation && $(PY) demo.py $(ENV)

# Before the masks, which may take long.
CHECK_NAMES = case "$$NAMES" in ''|'~'*) ;; \
  *) test -f "$$NAMES" || { echo "error: NAMES=$$NAMES: there is no such file" >&2; exit 2; };; esac

# IMAGES may hold spaces: make gives it to the commands as it is.
mine: .venv/installed $(if $(filter-out robust_background feature_cues auto,$(MODEL)),.venv/installed-optional)
	@test -n "$$IMAGES" || { echo 'error: say where the photographs are: make mine IMAGES=DIR' >&2; exit 2; }
	@$(CHECK_NAMES)
	$(BIN)/python pretrain/own_images.py --config_env pretrain/configs/env.yml --images "$$IMAGES" --name "$(NAME)" \
	  $(if $(MODEL),--model "$(MODEL)") $(if $(WEIGHTS),--weights "$$WEIGHTS") $(if $(TRAIN),--train "$(TRAIN)") \
	  $(if $(CLUSTERS),--clusters "$(CLUSTERS)") $(if $(OBJECTS),--objects "$(OBJECTS)")
	$(BIN)/python segmentation/own_clusters.py --config_env segmentation/configs/env.yml --name "$(NAME)" \
	  $(if $(CLUSTERS),--clusters "$(CLUSTERS)") $(if $(NAMES),--names "$$NAMES")

segment: .venv/installed
	@test -n "$$IMAGES" || { echo 'error: say where the photographs are: make segment IMAGES=DIR' >&2; exit 2; }
	@$(CHECK_NAMES)
	$(BIN)/python pretrain/own_images.py --config_env pretrain/configs/env.yml --images "$$IMAGES" --name "$(NAME)" --segment
	$(BIN)/python segmentation/segment.py --config_env segmentation/configs/env.yml --images "$$IMAGES" \
	  --clusters "$(NAME)_clusters" $(if $(NAMES),--names "$$NAMES")

reproduce: .venv/installed
	cd segmentation && $(PY) reproduce.py $(ENV) $(ARGS)

# Packages for optional parts, which the tests use. rembg compiles its parts on its first import, for a minute.
.venv/installed-optional: .venv/installed requirements-optional.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-optional.txt
	$(BIN)/python -c 'import rembg'
	touch $@

test: .venv/installed-optional
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Tests marked `slow` start processes, train, or need the optional packages.
test-fast: .venv/installed-optional
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m 'not slow'

# Files of tests/soak are not called test_*.py, so that `make test` leaves them out.
soak: .venv/installed
	timeout --foreground --signal=INT --kill-after=1m 19m $(BIN)/python -m pytest -s -o python_files='soak_*.py' tests/soak

gpu: .venv/installed
	cd benchmarks && ../$(BIN)/python -m gpu $(ARGS)

bench: .venv/installed
	$(BIN)/python benchmarks/table.py

lint: .venv/installed
	$(BIN)/ruff check .
	cd pretrain && $(PY) -m mypy .
	cd segmentation && $(PY) -m mypy .

sync:
	set -e; for d in $(TWINS); do \
	  rm -rf segmentation/$$d && cp -R pretrain/$$d segmentation/$$d && \
	  find segmentation/$$d -name __pycache__ -prune -exec rm -rf {} + ; \
	done

clean:
	rm -rf .venv .pytest_cache .ruff_cache pretrain/.mypy_cache segmentation/.mypy_cache __pycache__
	find pretrain segmentation tests benchmarks images -name __pycache__ -prune -exec rm -rf {} +
