"""Train a network on handwritten digits by hand-written backpropagation.

    python train.py                                   784-16-16-10 sigmoids, mini-batches of 100
    python train.py --sizes 784 100 10 --cost binary-cross-entropy --learning-rate 0.5
    python train.py --batch-size full --epochs 200    true gradient descent
    python train.py --resume runs/NAME                continue a run from its last checkpoint
    torchrun --nproc-per-node 2 train.py              two processes, the same network
    tensorboard --logdir runs                         cost curves, histograms, pictures

The four equations are in bp_torch/backprop.py, one step in bp_torch/training/step.py, the loop in
bp_torch/training/loop.py.
"""

from bp_torch.commands import start

if __name__ == "__main__":
    start("train", None)
