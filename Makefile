# What developers run; CI runs the README's test command.
check:          ## lint and types
	ruff check .
	mypy
test:           ## everything but the slow tests
	python -m pytest
bench:          ## what the network costs, case by case; speed of the routers, of the capacity policies and of training steps
	python -m tests.bench.network
	python -m tests.bench.routers
	python -m tests.bench.capacity
	python -m tests.bench.training
oracle:         ## every flow of 105 systems against SimGrid (needs g++ and libsimgrid-dev)
	python -m tests.oracle.simgrid
readme:         ## print the README's outputs anew
	COLUMNS=80 python -m tests.readme
.PHONY: check test bench oracle readme
