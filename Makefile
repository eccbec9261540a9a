# What developers run; CI runs the README's test command.
check:          ## lint and types
	ruff check .
	mypy
test:           ## everything but the slow tests
	python -m pytest
<<<<<<< HEAD
bench:          ## solves and visits of the network, speed of the capacity policies
	python -m tests.bench.network
	python -m tests.bench.capacity
=======
bench:          ## solves and visits of the network, speed of the routers
	python -m tests.bench.network
	python -m tests.bench.routers
>>>>>>> routers
readme:         ## print the README's outputs anew
	COLUMNS=80 python -m tests.readme
.PHONY: check test bench readme
