# The lab without Docker, its tests and its upkeep. `make help` lists the commands.
# With Docker: docker compose up trainer (see README.md).

PORT ?= 8000
PYTHON ?= python3
EXPERIMENT ?= digits
CONFIG ?= $(CURDIR)/trainer/configs/$(EXPERIMENT).yaml
export LAB_DIR ?= $(CURDIR)/lab

VENV := $(CURDIR)/.venv
PIP := $(VENV)/bin/pip --disable-pip-version-check install --quiet
export PATH := $(VENV)/bin:$(PATH)

# Another MLflow server than the embedded one: make train MLFLOW_TRACKING_URI=https://mlflow.example.org
ifndef MLFLOW_TRACKING_URI
SERVER := server
export MLFLOW_TRACKING_URI := http://127.0.0.1:$(PORT)
endif

.PHONY: help train server down test test-fast soak lint bench credentials backup restore upgrade lock
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

train: $(VENV)/trainer $(SERVER) ## train without Docker, on every GPU or else the CPU; EXPERIMENT=digits, CONFIG=, DEVICES=auto, ARGS=
	@trainer fit --config $(CONFIG) $(ARGS)
	@$(if $(SERVER),echo "the UI stays up at $(MLFLOW_TRACKING_URI); make down stops it")

server: $(VENV)/trainer ## start the embedded MLflow server on PORT=8000, unless one answers there
	@trainer server --detach --port $(PORT)

down: ## stop the embedded MLflow server
	@test ! -x $(VENV)/bin/trainer || trainer server --stop

test: $(VENV)/test ## run every suite that this machine can run; ARGS= goes to pytest
	@env -u MLFLOW_TRACKING_URI -u LAB_DIR pytest -c trainer/pyproject.toml --rootdir . trainer/tests tests $(ARGS)

test-fast: ## run the tests that want neither Docker nor a browser and kill nothing
	@$(MAKE) --no-print-directory test ARGS='-m "not container and not browser and not fault" $(ARGS)'

soak: $(VENV)/test ## kill random components at random times, and audit every run; SECONDS=1200, KILLS=30, SEED= (needs Docker)
	@env -u MLFLOW_TRACKING_URI -u LAB_DIR PYTHONPATH=tests:trainer/tests python -m faults.soak \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/test ## check style, shell, Dockerfiles, Compose files and that versions agree
	@.ci/lint

bench: $(VENV)/test ## print the figures that the README quotes (needs Docker)
	@bench/stack

credentials: ## print the login of the MinIO console
	@docker compose exec -T minio sh -c 'echo "user      $$(cat /run/secrets/access_key)"; echo "password  $$(cat /run/secrets/secret_key)"'

backup: ## write the lab's runs and artifacts into a dated folder in BACKUPS=backups; jobs may go on (needs Docker)
	@docker/backup

restore: ## bring up the lab of the backup FROM=FOLDER, on empty volumes (needs Docker)
	@docker/restore "$$FROM"

upgrade: ## back up, then move the images and the schema on to those of this checkout (needs Docker)
	@docker/upgrade

lock: ## write the hash-pinned locks anew (needs uv)
	@.ci/lock

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.13 …")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python has no venv module here; on Debian or Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/trainer: trainer/requirements.lock trainer/pyproject.toml | $(VENV)/bin/pip
	@echo "installing the trainer's packages into .venv (about 3 GB to download, once; two to ten minutes)"
	@$(PIP) --require-hashes --requirement trainer/requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable trainer
	@touch $@

$(VENV)/test: trainer/requirements-test.lock $(VENV)/trainer
	@$(PIP) --require-hashes --requirement trainer/requirements-test.lock
	@touch $@
