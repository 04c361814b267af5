"""Time one epoch of the hand-written backward beside what one would otherwise write, on this machine.

    python -m bp_torch benchmark                          784-16-16-10, batches of 100
    python -m bp_torch benchmark --sizes 784 512 512 10 --batch-size 256 --json
    python -m bp_torch benchmark --sweep                  four sizes, from 13,002 parameters to 5.8 million
    python -m bp_torch benchmark --device cuda
    python -m bp_torch benchmark scripts                  seconds from the start of a process to a trained network
    python -m bp_torch benchmark accuracy                 seconds until a test accuracy, from the start of a process

Every contender does the same task: the same start, the same batches in the same order, the same cost, plain SGD in
float32, with the shuffle and the gathering of the batches included. This package may use autograd: it is what it
compares with.
"""
