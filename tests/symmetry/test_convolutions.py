"""Convolutional networks: groups and flat dimension written down, checked, and complete."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaugefix.symmetry import find_symmetries
from gaugefix.testing import flat_directions

pytestmark = pytest.mark.long


class Basic(nn.Module):
    """The basic block of a ResNet, on leaky ReLU so that no unit is dead."""

    def __init__(self, c: int, out: int, stride: int = 1, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), norm(out)
        self.c2, self.b2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or out != c:
            self.skip = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b2(self.c2(F.leaky_relu(self.b1(self.c1(x)))))
        return F.leaky_relu(y + self.skip(x))


class Bottleneck(nn.Module):
    """The bottleneck block of a ResNet: 1 x 1 to a narrow width, 3 x 3, 1 x 1 back, the stride in the middle."""

    def __init__(self, c: int, narrow: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(c, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.c2, self.b2 = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False), nn.BatchNorm2d(narrow)
        self.c3, self.b3 = nn.Conv2d(narrow, out, 1, bias=False), nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or out != c:
            self.skip = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.b2(self.c2(F.leaky_relu(self.b1(self.c1(x))))))
        return F.leaky_relu(self.b3(self.c3(y)) + self.skip(x))


class Dense(nn.Module):
    """Two layers of a DenseNet and a small U-Net step: everything is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(5, 2, 3, padding=1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.leaky_relu(self.a(x))], dim=1)
        x = torch.cat([x, F.leaky_relu(self.b(x))], dim=1)
        return F.leaky_relu(self.c(x)).flatten(1)


class UNet(nn.Module):
    """Down, up by a transposed convolution, concatenated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 2, stride=2)
        self.up, self.head = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.enter(x))
        deep = F.leaky_relu(self.up(F.leaky_relu(self.down(skip))))
        return self.head(torch.cat([skip, deep], dim=1))


def resnet(w: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, w, 3, 1, 1, bias=False), norm(w), nn.LeakyReLU(), Basic(w, w, 1, norm), Basic(w, 2 * w, 2, norm),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * w, 3),
    )  # fmt: skip


def bottleneck(w: int, narrow: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.LeakyReLU(), Bottleneck(w, narrow, w),
        Bottleneck(w, narrow, w + 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w + 1, 3),
    )  # fmt: skip


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every position, as in ConvNeXt."""

    def __init__(self, c: int, *, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class SumOverPositions(nn.Module):
    """A constant arrives at the bias once for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,oc->no", x, self.weight) + self.bias


def normed(last: nn.Module, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2), ChannelNorm(4, bias=bias), last)


def two_groups(c: int) -> nn.Module:
    return nn.GroupNorm(2, c)


def stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


LEAKY = nn.LeakyReLU()

# name -> (make, shape of the input, flat dimension, groups that must be there)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, set[str]]] = {
    "plain": (lambda: stack(nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 2, 3)), (3, 2, 6, 6), 4, {"S_4", "R+^4"}),
    "strided": (
        lambda: stack(nn.Conv2d(2, 4, 3, 2), nn.LeakyReLU(), nn.Conv2d(4, 2, 2)), (3, 2, 7, 7), 4, {"S_4", "R+^4"},
    ),
    "tanh": (lambda: stack(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)), (3, 2, 6, 6), 0, {"S_4", "Z_2^4"}),
    "linear, no padding": (
        lambda: stack(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, 2)), (3, 2, 6, 6), 12, {"GL(3)", "T(3)"},
    ),
    "linear, zero padding": (
        lambda: stack(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)), (3, 2, 6, 6), 9, {"GL(3)"},
    ),
    "grouped": (
        lambda: stack(nn.Conv2d(2, 4, 2), LEAKY, nn.Conv2d(4, 6, 2, groups=2), LEAKY, nn.Conv2d(6, 2, 1)),
        (3, 2, 5, 5), 10, {"(S_2)^2", "S_2", "(S_3)^2"},
    ),
    "depthwise": (
        lambda: stack(nn.Conv2d(2, 4, 1), LEAKY, nn.Conv2d(4, 4, 3, groups=4), LEAKY, nn.Conv2d(4, 2, 1)),
        (3, 2, 6, 6), 8, {"S_4", "R+^4"},
    ),
    "transposed": (
        lambda: stack(nn.ConvTranspose2d(2, 4, 2, 2), LEAKY, nn.Conv2d(4, 2, 2)), (3, 2, 4, 4), 4, {"S_4", "R+^4"},
    ),
    "pooled": (
        lambda: stack(nn.Conv2d(2, 4, 2), nn.MaxPool2d(2), LEAKY, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)),
        (3, 2, 5, 5), 4, {"S_4", "R+^4"},
    ),
    "flattened": (
        lambda: stack(nn.Conv2d(1, 3, 2), LEAKY, nn.Flatten(), nn.Linear(12, 2)), (3, 1, 3, 3), 3, {"S_3", "R+^3"},
    ),
    "group norm": (
        lambda: stack(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.LeakyReLU(), nn.Conv2d(4, 2, 1)),
        (3, 2, 5, 5), 8, {"(S_2)^2", "S_2", "R+^4"},
    ),
    "batch norm": (
        lambda: stack(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Conv2d(4, 2, 3)),
        (3, 2, 6, 6), 3 * 4, {"S_4", "R+^4", "Z_2^4", "T(4)"},
    ),
    "ResNet with BatchNorm, width 2": (lambda: resnet(2), (4, 1, 6, 6), 34, {"S_2", "S_4", "Z_2^2", "Z_2^4", "T(4)"}),
    # as written, every norm takes the scale of its input (19), and its gain the scale of a homogeneous unit (18); the
    # last sum adds two biases (4)
    "ResNet with bottlenecks": (
        lambda: bottleneck(3, 2), (4, 1, 6, 6), 19 + 18 + 4, {"S_2", "S_3", "S_4", "Z_2^2", "Z_2^4", "R+^4", "T(4)"},
    ),
    # per channel: the units behind the first norm and the stream (4 + 4), two added biases (4); per group: the scale
    # of the input of three norms (6); the homogeneous first layer (2)
    "ResNet with GroupNorm": (
        lambda: stack(nn.Conv2d(1, 2, 3, padding=1), LEAKY, Basic(2, 4, 2, two_groups), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(4, 3)),
        (4, 1, 6, 6), 4 + 4 + 4 + 6 + 2, {"S_2", "(S_2)^2", "R+^4", "R+^2", "Z_2^2", "T(4)"},
    ),
    # writers: what is added to all channels (8 + 1), the scale (1), O(3); gains against what reads them (4), the shift
    # against the bias before it (4); readers: one constant for each of 3 rows and 4 or 9 positions of the kernel
    "channel norm": (lambda: normed(nn.Conv2d(4, 3, 2)), (6, 2, 5, 5), 10 + 3 + 4 + 4 + 12, {"T(12)", "R+^4", "S_4"}),
    "channel norm, strides": (
        lambda: normed(nn.Conv2d(4, 3, 2, 2, dilation=2)), (6, 2, 5, 5), 10 + 3 + 4 + 4 + 12, {"T(12)"},
    ),
    "channel norm, zero padding": (
        lambda: normed(nn.Conv2d(4, 3, 3, padding=1), bias=False), (6, 2, 5, 5), 10 + 3 + 4 + 27, {"T(27)"},
    ),
    "channel norm, sum over positions": (
        lambda: normed(SumOverPositions()), (6, 2, 5, 5), 10 + 3 + 4 + 4 + 3, {"T(3)"},
    ),
    "DenseNet": (Dense, (3, 2, 4, 4), 5, {"S_3", "S_2", "R+^3", "R+^2"}),
    "U-Net": (UNet, (3, 1, 4, 4), 7, {"S_2", "S_3", "R+^2", "R+^3"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_convolutional_networks(name: str) -> None:
    make, shape, flat, groups = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    args = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    found = find_symmetries(model, args, verify=True)
    assert found.rejected == ()
    assert found.opaque == ()
    assert groups <= {s.group for s in found}
    assert found.flat_dim == flat
    assert min(flat_directions(model, args, seed=s).flat for s in range(3)) == flat


@pytest.mark.parametrize(
    "last",
    [
        nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 3, 2)),
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 3, 2)),
        nn.Conv2d(4, 3, 3, padding="same"),
        nn.ConvTranspose2d(4, 3, 2, 2),
    ],
    ids=["padded pooling", "zeros around", "padding", "transposed"],
)
def test_no_null_direction_where_the_border_sees_less_of_the_shift(last: nn.Module) -> None:
    args = (torch.randn(6, 2, 5, 5),)
    found = find_symmetries(normed(last), args, verify=False)
    assert not [s.name for s in found if "null direction" in s.name]
    assert find_symmetries(normed(last), args, verify=True).rejected == ()
