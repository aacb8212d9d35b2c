"""Names for sandboxes that were given none."""

from __future__ import annotations

import secrets
from collections.abc import Container

_FIRST = tuple(
    """amber ample azure bold brave brisk calm clear coral crisp dewy eager early even fair
fern fleet fond fresh frosty gentle glad golden green happy hazel humble ivory jade jolly keen kind
light lively lucid lunar mellow merry mild misty mossy neat nimble noble olive opal patient plain
proud quick quiet rapid rosy ruby rustic sage sharp shy silent silver smooth snowy solar sturdy
sunny swift tidy vivid warm wild wise witty young zesty""".split()  # noqa: SIM905
)
_SECOND = tuple(
    """agaric amanita blewit bolete brittlegill bracket cap chanterelle conk cortina cup
deceiver earthstar enoki entoloma fairyring fan fieldcap gill hedgehog honeycap hydnum inkcap jelly
king lactarius lichen maitake milkcap morel mycena oyster parasol pholiota pinecap polypore porcini
puffball redcap ringlet russula saffron shank shield shiitake skullcap slipper spindle stinkhorn
stropharia truffle tuft velvet webcap woodear woodtuft yeast""".split()  # noqa: SIM905
)


def made_up_name(taken: Container[str]) -> str:
    """Two words that no sandbox is called by; with a number when luck runs out."""
    for _ in range(16):
        name = f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}"
        if name not in taken:
            return name
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{secrets.token_hex(3)}"
