"""The looks of the published pages: colours for light, dark and print, and one style sheet."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["COLOURS", "N_LEVELS", "RAMPS", "SERIES", "STYLE", "contrast"]

COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e6e9ed"),
    "soft": ("#57606a", "#a3adb8"),
    "paper": ("#ffffff", "#14171b"),
    "card": ("#f5f7f9", "#1d2127"),
    "line": ("#d5dbe1", "#363d46"),
    "accent": ("#0b5cad", "#7ab8f5"),
    "warn": ("#b3261e", "#ff8a80"),
}
"""Name -> colour in the light and in the dark."""

RAMPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "load": (
        ("#f1f6fc", "#dbe9f6", "#bad6eb", "#89bedc", "#539ecd", "#2b7bba", "#0b559f", "#08306b"),
        ("#1a2733", "#183652", "#1b4b78", "#2766a0", "#3f84c0", "#6aa5d8", "#9cc6ea", "#d3e7f8"),
    ),
    "error": (
        ("#fff5eb", "#fee6ce", "#fdd0a2", "#fdae6b", "#fd8d3c", "#e95e0d", "#c04102", "#7f2704"),
        ("#2e2018", "#4a2a12", "#733a10", "#9c4d11", "#c4661b", "#e5883b", "#f5b377", "#fde0c5"),
    ),
}
"""Heatmap colours from little to much; in the dark, much is bright."""

N_LEVELS = 8

SERIES: tuple[tuple[str, str], ...] = (
    ("#0b5cad", "#7ab8f5"),
    ("#b84a00", "#ffa563"),
    ("#2c7a3f", "#7fd493"),
    ("#8b3fa0", "#d79be8"),
    ("#6b5b00", "#d9c452"),
    ("#a02c4c", "#f59ab3"),
)
"""Lines and markers of plots."""


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2), 1 to 21; text needs 4.5."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _variables(shade: int) -> Iterator[str]:
    for name, pair in COLOURS.items():
        yield f"--{name}:{pair[shade]}"
    for index, pair in enumerate(SERIES):
        yield f"--s{index}:{pair[shade]}"
    for name, ramps in RAMPS.items():
        for level, colour in enumerate(ramps[shade]):
            on = max("#000000", "#ffffff", key=lambda ink: contrast(ink, colour))
            yield f"--{name}{level}:{colour};--on-{name}{level}:{on}"


def _ramp_rules() -> Iterator[str]:
    for name in RAMPS:
        for level in range(N_LEVELS):
            yield f".{name} .c{level}{{background:var(--{name}{level});color:var(--on-{name}{level})}}"


RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:72rem;padding:1rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
h1{font-size:clamp(1.4rem,1rem + 2vw,2.1rem);line-height:1.2;margin:1rem 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:1.2rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:2rem 0 .25rem}
p{margin:.4rem 0 .8rem;max-width:48rem}
header p{font-size:1.05rem;color:var(--soft)}
footer{margin-top:3rem;color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.3rem 0}
.list{min-width:min(100%,46rem);font-size:.92rem;margin:.5rem 0 1rem}
.list th,.list td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
.list th:first-child{padding-left:0;position:sticky;left:0;background:var(--paper);white-space:normal;
overflow-wrap:anywhere;min-width:min(8rem,30vw);max-width:40vw}
.list thead th{color:var(--soft);font-weight:500;font-size:.82rem;vertical-align:bottom;white-space:normal}
.list tbody th{font-weight:600}
.list .n{text-align:right}
.list td:not(.n){white-space:normal;min-width:12rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(10.5rem,100%),1fr));gap:.75rem;margin:1.5rem 0 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
.tiles div:only-child{max-width:24rem}
.tiles dt{font-size:.82rem;color:var(--soft);overflow-wrap:anywhere}
.tiles dd{margin:0;font-size:.88rem;color:var(--soft)}
.tiles b{display:block;font-size:1.3rem;line-height:1.3;color:var(--ink);overflow-wrap:anywhere}
.terms{display:grid;grid-template-columns:minmax(8rem,14rem) 1fr;gap:.35rem 1.25rem;margin:.5rem 0}
.terms dt{font-weight:600}
.terms dd{margin:0;max-width:46rem;overflow-wrap:anywhere}
.panels{display:flex;flex-wrap:wrap;gap:1rem 2rem;align-items:flex-start}
.panels>.scroll{flex:1 1 19rem}
.wide>.scroll{flex-basis:28rem}
.heat{width:100%;max-width:calc(var(--label) + var(--columns)*3.6rem);table-layout:fixed;font-size:.8rem}
.heat{min-width:calc(var(--label) + var(--columns)*2.5rem)}
.heat.many{min-width:calc(var(--label) + var(--columns)*.5rem);max-width:calc(var(--label) + var(--columns)*1.6rem)}
.heat th{font-weight:400;color:var(--soft);padding:0 .2rem;white-space:nowrap}
.heat tbody th{text-align:right;padding-right:.5rem;white-space:normal;overflow-wrap:anywhere;line-height:1.2}
.heat tbody th,.heat .corner{position:sticky;left:0;z-index:1;background:var(--paper)}
.heat thead th{position:relative;height:1.4rem;overflow:visible;font-size:.75rem}
.heat .corner{width:var(--label);font-size:.68rem;line-height:1.1;color:var(--soft);text-align:left}
.heat tbody td{height:1.75rem;padding:0;text-align:center;border:1px solid var(--paper);overflow:hidden}
.heat.many tbody td{height:1.35rem;font-size:0;border-width:.5px}
.heat.tall tbody td{height:.9rem}
.heat.tall tbody th{font-size:.65rem;line-height:1}
.warn{background:repeating-linear-gradient(45deg,var(--paper) 0 3px,var(--warn) 3px 5px);color:transparent}
.none{color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;align-items:center;max-width:none;font-size:.82rem;
color:var(--soft)}
.legend i{display:inline-block;width:1.1rem;height:.8rem;vertical-align:-.05rem}
.switch{margin:0 .4rem .6rem 0;vertical-align:middle}
.switch+label{font-size:.85rem;color:var(--soft)}
.switch:checked~.panels .scroll{flex-basis:100%}
.switch:checked~.panels .heat{max-width:none;width:calc(var(--label) + var(--columns)*3rem)}
.switch:checked~.panels .heat tbody td{font-size:.7rem;height:1.35rem}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
figure{margin:1rem 0;flex:1 1 21rem;max-width:33rem}
figcaption{font-weight:600;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font-size:12.5px;font-family:inherit}
svg .name{fill:var(--ink);font-weight:600;stroke:var(--paper);stroke-width:4px;paint-order:stroke}
svg .grid{stroke:var(--line);stroke-width:1}
.keys{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem;list-style:none;padding:0;margin:.3rem 0}
.keys svg{display:inline-block;width:1.2rem;height:.8rem;vertical-align:-.05rem}
@media (max-width:40rem){.terms{grid-template-columns:1fr;gap:0}.terms dd{margin-bottom:.7rem}
.list{font-size:.85rem}.list th,.list td{padding:.3rem .45rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.switch,.switch+label{display:none}figure,.scroll,.tiles{break-inside:avoid-page}h2,h3,.legend{break-after:avoid-page}
.scroll{overflow:visible}}
"""


def _series_rules() -> Iterator[str]:
    for index in range(len(SERIES)):
        yield f".s{index}{{stroke:var(--s{index});fill:var(--s{index})}}.s{index} path{{fill:none;stroke-width:2}}"


STYLE = "\n".join(
    [
        f":root{{{';'.join(_variables(0))}}}",
        f"@media screen and (prefers-color-scheme:dark){{:root{{{';'.join(_variables(1))}}}}}",
        RULES.strip(),
        *_ramp_rules(),
        *_series_rules(),
        "",
    ]
)
