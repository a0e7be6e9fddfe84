"""Array aliases with named axes, and the one table that says what each letter means.

The annotations are enforced while tests run (see ``tests/conftest.py``) and cost nothing otherwise.

========  =====================================================================
axis      meaning
========  =====================================================================
``b``     cases or patches of a batch
``c``     channels of the input, one per modality, in the model's order
``n``     channels of the output: regions, or background and classes
``x y z`` voxels along the three axes of a grid
``*s``    spatial axes, two or three of them
``*k``    axes of one convolution kernel slice, 3x3 or 3x3x3
``m``     kernel slices
``K``     posterior samples
========  =====================================================================
"""

from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

Volume = Shaped[Tensor, "x y z"]
FloatVolume = Float[Tensor, "x y z"]
LabelVolume = Integer[Tensor, "x y z"]

Image = Float[Tensor, "c *s"]
ImageBatch = Float[Tensor, "b c *s"]
TargetBatch = Float[Tensor, "b n *s"]
LogitBatch = Float[Tensor, "b n *s"]
KnownBatch = Bool[Tensor, "b n"]
PerCase = Float[Tensor, " b"]

Kernels = Float[Tensor, "m *k"]
PerKernel = Float[Tensor, " m"]
