# SPDX-License-Identifier: Apache-2.0
# Everything runs in .venv (ROS=jazzy: .venv-jazzy); see 'make help'.
SHELL := /bin/bash
.DEFAULT_GOAL := help

ROS ?= kilted
export ROS
# For tools/setup; see there.
ifdef PYTHON
export PYTHON
endif
ifdef TORCH
export TORCH
endif

suffix := $(if $(filter kilted,$(ROS)),,-$(ROS))
bin := .venv$(suffix)/bin

EMBODIMENT ?=
TASK ?=
export TASK
EPISODES ?=
SEED ?=
SETTING ?=
TESTS ?=
COUNT ?= 20
# Real time on all cores, one test after the other; the other rooms share the cores.
ros_tests := test/bench test/demo test/nodes test/packaging
free_tests := $(filter-out $(ros_tests),$(patsubst %/,%,$(wildcard test/*/)))
pytest := tools/with_ros python -m pytest --cov --cov-report=xml:coverage.xml

.PHONY: help setup demo test faults lint bench checkpoint evaluation clean

help:
	@echo 'make demo     run the simulated robots   EMBODIMENT= TASK= EPISODES= SEED= SETTING='
	@echo 'make test     all tests                  TESTS=test/motion'
	@echo 'make faults   the fault suite, many times   COUNT=20'
	@echo 'make lint     format, lint, types, rules between the rooms'
	@echo 'make bench    benchmarks, also as out/bench.json and .md'
	@echo 'make checkpoint  train weights like the shipped ones, in hours   OUT=out/checkpoint FROM=CHECKPOINT (the last run alone)'
	@echo 'make evaluation  all that docs/evaluation counts, in hours   CHECKPOINT= SEED= OUT=out/evaluation'
	@echo 'make setup    only what the others need first'
	@echo 'make clean    remove the environment and everything built'
	@echo
	@echo 'ROS=kilted|jazzy  PYTHON=python3.12  TORCH="torch==2.13.0 --index-url ..."'

setup:
	@tools/setup

demo: setup
	@tools/with_ros qwen-vla demo $(foreach body,$(EMBODIMENT),--embodiment '$(body)') \
	  $(if $(TASK),--task "$$TASK") $(if $(EPISODES),--episodes $(EPISODES)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(SETTING),--setting $(SETTING))

test: setup
ifdef TESTS
	@$(pytest) $(TESTS)
else
	@# Tests skip what is not installed; here it all is.
	@tools/with_ros python -c 'import mujoco, onnx, onnxruntime, pinocchio, rclpy, rerun.chunk, torch'
	@status=0; \
	OMP_NUM_THREADS=1 $(pytest) --numprocesses auto --dist loadfile $(free_tests) || status=1; \
	$(pytest) --cov-append $(ros_tests) || status=1; \
	exit $$status
endif
	@tools/with_ros coverage report --format=total | sed 's/.*/coverage: & %/'

faults: setup
	@tools/with_ros python -m qwen_vla_ros.bench._faults --count $(COUNT)

lint: setup
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/lint-imports

bench: setup
	@tools/with_ros python -m qwen_vla_ros.bench

checkpoint: setup
	@PATH=$(CURDIR)/$(bin):$$PATH tools/make_checkpoint $(or $(OUT),out/checkpoint) $(FROM)

evaluation: setup
	@PATH=$(CURDIR)/$(bin):$$PATH tools/evaluate_checkpoint $(or $(CHECKPOINT),checkpoints/qwen_vla_tiny) \
	  $(or $(OUT),out/evaluation) $(or $(SEED),0)

clean:
	rm -rf .venv$(suffix) .colcon$(suffix) out .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
