import numpy as np
from numpy.typing import NDArray

def bilinear(source: NDArray[np.uint8], out: NDArray[np.uint8], /) -> None: ...
