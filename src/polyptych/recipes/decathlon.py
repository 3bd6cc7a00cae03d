"""The Visual Decathlon (Rebuffi, Bilen, Vedaldi, NeurIPS 2017, arXiv 1705.08045) as ten tasks of one network."""

from polyptych.backbones.wide_resnet import WideResNet
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets._decathlon.domains import DOMAINS
from polyptych.datasets.decathlon import Decathlon
from polyptych.decoders.heads import Heads
from polyptych.encoders.mtan import Mtan
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.classification import Classification


def decathlon_mtan() -> Run:
    """MTAN (Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704) on the Visual Decathlon: ten classifications, WRN-28-4.

    Command: ``polyptych train decathlon_mtan --dataset.root DIR``, with all ten domains unpacked in DIR. 10,237,656
    parameters, as published. The score is in the evaluation of a run (``scores``) and below its table.

    SGD at 0.1 with Nesterov momentum 0.9 and weight decay 5e-5 in the gradient, batch 128, the rate halved five times,
    images of 72x72, colors matched to the same mean and standard deviation in every domain, as published. Ours differs:

    - A batch holds images of all ten domains, equally many of each, and a step takes the mean of their ten losses. The
      authors visit one domain after another, with 300 epochs of each and then 100 at 0.01 without ImageNet; we take
      100,000 steps. So batch statistics are those of the mixture, in training as in testing, and need no adaptation
      before testing; the statistics in a domain's attention too are of all images, not of its own only.
    - Nothing is mirrored: three of the domains are signs, letters and digits. (The authors mirror the other seven.)
    - A classifier sees the mean of all 9x9 positions; the authors' pooling leaves out the last row and column.
    - Images are tested whole, not cropped to a square, and the labels of the test images are not public: tests use the
      official val.

    Cost: every image passes all ten attention networks and heads, 4.7 G multiply-adds, whereas only those of its own
        domain would take 1.6 G; the authors' batches of one domain do without the other nine.

    Published, score and accuracy in percent on the secret test labels, in the order imagenet12 aircraft cifar100
    daimlerpedcls dtd gtsrb vgg-flowers omniglot svhn ucf101, recalled, not re-read: MTAN 2941, 63.90 61.81 81.59 91.59
    56.44 98.80 81.04 89.83 96.88 50.63; a network fine-tuned for each 2500, 59.87 60.34 82.12 92.82 55.53 97.53 81.41
    87.69 96.55 51.20. Scores of a run here are of other images and not comparable.
    """
    return Run(
        recipe="decathlon_mtan",
        dataset=Decathlon.Config(match_statistics=True),
        tasks=dict.fromkeys(DOMAINS, Classification.Config()),
        backbone=WideResNet.Config(),
        encoder=Mtan.Config(),
        decoder=Heads.Config(head="linear"),
        balancer=Fixed.Config(weights=dict.fromkeys(DOMAINS, 1 / len(DOMAINS))),
        size=(72, 72),
        steps=100_000,
        batch_size=128,
        augment=Augment(mirror=False),
        optimizer=Optimizer(kind="sgd", learning_rate=0.1, weight_decay=5e-5, nesterov=True, decay_everything=True),
        schedule=Schedule(kind="step", period=16_667, factor=2.0),
        loading=Loading(workers=8),
        monitoring=Monitoring(log_every=50, validate_every=10_000, save_every=1000),
    )
