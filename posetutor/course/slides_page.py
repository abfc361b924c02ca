"""The page around the slides: its HTML, its style and its few lines of script. Nothing here leads outside."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main aria-roledescription="slides" aria-label="{title}">
{slides}
</main>
<nav aria-label="Slides">
<button type="button" data-do="previous" aria-label="Previous slide" title="Previous slide (left arrow)">◀</button>
<button type="button" data-do="next" aria-label="Next slide" title="Next slide (right arrow)">▶</button>
<button type="button" data-do="overview" aria-label="Overview" title="Overview (o)">▦</button>
<button type="button" data-do="notes" aria-label="Notes" title="Notes (n)">✎</button>
<button type="button" data-do="help" aria-label="Help" title="Help (?)">?</button>
</nav>
<dialog id="help" aria-label="Keys">{help}</dialog>
<div id="progress" aria-hidden="true"></div>
<p id="say" role="status" aria-live="polite"></p>
<script>{script}</script>
</body>
</html>
"""

HELP = """<h2>Keys</h2><table>
<tr><th scope="row">→ ↓ Space Page down</th><td>next slide</td></tr>
<tr><th scope="row">← ↑ Page up</th><td>previous slide</td></tr>
<tr><th scope="row">Home, End</th><td>first, last slide</td></tr>
<tr><th scope="row">n</th><td>notes under the slide</td></tr>
<tr><th scope="row">s</th><td>notes, clock and next title in a window of their own</td></tr>
<tr><th scope="row">o</th><td>overview; arrows and Enter choose</td></tr>
<tr><th scope="row">f</th><td>full screen</td></tr>
<tr><th scope="row">+ − 0</th><td>larger, smaller, usual text</td></tr>
<tr><th scope="row">?</th><td>this help; Escape closes it</td></tr>
</table><p>Print (Ctrl+P) puts one slide on each page.</p><form method="dialog"><button>Close</button></form>"""

STYLE = """
:root{--paper:#fff;--ink:#1b2430;--soft:#566373;--line:#d5dbe2;--accent:#0072b2;--warm:#b34700;--good:#00694b;--panel:#f3f6f9;--zoom:1}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e8edf2;--soft:#a3b0bd;--line:#37424e;--accent:#6cbcf0;--warm:#f4a261;--good:#5fd3a8;--panel:#1f262e}}
*{box-sizing:border-box}
html,body{margin:0;height:100%;background:var(--paper);color:var(--ink)}
body{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,sans-serif;line-height:1.38}
.slide{container-type:size;width:100vw;height:100vh;height:100dvh;overflow:hidden;background:var(--paper);color:var(--ink);position:relative}
.inner{font-size:max(13px,calc(min(2.15cqw,3.82cqh)*var(--zoom)));height:100%;display:flex;flex-direction:column;padding:1.15em 2.1em .3em;overflow:auto}
h1,h2{margin:0 0 .55em;line-height:1.18;font-weight:650;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:1.5em;color:var(--accent)}
h2 .part{font-size:.6em;font-weight:400;color:var(--soft);white-space:nowrap}
h1{font-size:2.15em;color:var(--accent)}
h3{margin:.5em 0 .35em;font-size:1em;color:var(--soft)}h3:first-child{margin-top:0}
p{margin:0 0 .62em}
.text{flex:1 1 auto;min-height:0;display:flex;flex-direction:column}
.text>*{flex:none}
.inner>.text::before{content:"";flex:1 1 0}.inner>.text::after{content:"";flex:2 1 0}
.airy .text{font-size:1.2em}.wide .text{font-size:1.08em}
ul,ol{margin:0 0 .5em;padding-left:1.25em}
li{margin-bottom:.32em}
li::marker{color:var(--accent)}
.runin{padding-left:.8em;border-left:.16em solid var(--accent)}
a{color:var(--accent)}
code{font-family:ui-monospace,"Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}
mtd[columnalign="left"]{text-align:left}
math{font-family:"Latin Modern Math","STIX Two Math","Cambria Math","DejaVu Math TeX Gyre",math;font-size:1.06em}
.equation{display:flex;align-items:center;justify-content:center;gap:1em;margin:.15em 0 .7em;overflow-x:auto;overflow-y:hidden;padding:.1em 0}
.equation .parts{flex:1 1 auto;min-width:0;display:flex;flex-wrap:wrap;justify-content:center;align-items:center;gap:.45em 2.2em}
.equation math{margin:0}
.equation .number{color:var(--soft);font-size:.85em}
pre{margin:0 0 .6em;background:var(--panel);border-radius:.4em;padding:.8em 1em;overflow:auto;line-height:1.42;white-space:pre-wrap;overflow-wrap:anywhere;
 font-size:min(.92em,calc(86cqw/(var(--cols)*.605)));color:var(--ink)}
pre code{font-size:1em}
.k{color:var(--accent);font-weight:600}.s{color:var(--good)}.m{color:var(--warm)}.c{color:var(--soft);font-style:italic}
table{border-collapse:collapse;margin:0 0 .7em;font-size:.88em}
th,td{padding:.25em .8em .25em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}
figure{margin:0;flex:1 1 0;min-height:0;min-width:0;display:flex;flex-direction:column;align-items:center;justify-content:center;gap:.5em}
figure img{flex:0 1 auto;min-height:0;min-width:0;max-width:100%;width:calc(var(--w)*2.2px);height:auto;max-height:100%;object-fit:contain;background:#fff;border-radius:.3em;padding:.25em}
figcaption{flex:none;color:var(--soft);font-size:.74em;max-width:60em;text-align:center;line-height:1.3;padding-bottom:.4em;text-wrap:balance}
.above{flex:1 1 0;min-height:0;display:flex;flex-direction:column}
.above .text{flex:none;padding-bottom:.3em}
.beside{flex:1 1 0;min-height:0;display:grid;grid-template-columns:minmax(0,5fr) minmax(0,6fr);grid-template-rows:minmax(0,1fr);gap:1.4em}
.beside figure{height:100%}
.title .inner{background:linear-gradient(90deg,var(--accent) 0 .5em,transparent .5em)}
.title .inner{padding-left:3.2em}
.title h1{margin-top:1.6em;margin-bottom:0}
.title .sentence{font-size:1.08em}
.title .learn{padding-top:.5em}
.facts{color:var(--soft);font-size:.85em}
.claim .text>p{font-size:1.15em;font-weight:600;border-left:.16em solid var(--warm);padding-left:.7em}
dl{display:grid;grid-template-columns:6em 1fr;margin:.15em 0 .35em}
dt{color:var(--soft)}dd{margin:0}
.verdict{font-weight:650;white-space:normal}.verdict.yes{color:var(--good)}.verdict.direction{color:var(--accent)}.verdict.no{color:var(--warm)}
.stars{color:var(--warm);letter-spacing:.08em}
footer{flex:none;display:flex;justify-content:space-between;color:var(--soft);font-size:.55em;padding:.3em 0 .35em}
.notes{display:none}
nav{position:fixed;right:.5rem;bottom:1.9rem;display:flex;gap:.2rem;opacity:0;transition:opacity .15s}
nav:hover,nav:focus-within,body.mouse nav{opacity:1}
nav button,dialog button{font:inherit;font-size:1rem;min-width:2.2rem;min-height:2.2rem;color:var(--ink);background:var(--panel);border:1px solid var(--line);border-radius:.4rem;cursor:pointer}
:focus-visible{outline:3px solid var(--warm);outline-offset:2px}
#progress{position:fixed;left:0;bottom:0;height:3px;background:var(--accent);width:0}
#say{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
dialog{background:var(--paper);color:var(--ink);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.6rem;max-height:92vh;overflow:auto}
dialog::backdrop{background:#0008}
@media screen{
.live .slide{display:none}.live .slide.on{display:block}
.with-notes .slide{height:62vh}
.with-notes .slide.on+.notes{display:block;height:38vh;overflow:auto;padding:.8rem 2rem 2.5rem;background:var(--panel);border-top:2px solid var(--line);font-size:1.05rem;max-width:none}
.overview{overflow:auto}
.overview main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,46vw),1fr));gap:1rem;padding:1rem}
.overview .slide{display:block;width:auto;height:auto;aspect-ratio:16/9;border:1px solid var(--line);border-radius:.4rem;cursor:pointer}
.overview .slide.on{outline:4px solid var(--accent)}
.overview .inner{font-size:min(2.15cqw,3.82cqh);overflow:hidden}
.overview .slide .inner{pointer-events:none}
}
@media screen and (max-width:640px){.beside{display:flex;flex-direction:column}.inner{padding-left:1.1em;padding-right:1.1em}.live .slide.on .inner{font-size:max(15px,min(2.15cqw,3.82cqh))}figure{flex:none}}
@media (prefers-reduced-motion:reduce){*{transition:none!important}}
@media print{
@page{size:297mm 167mm;margin:0}
:root{--paper:#fff;--ink:#1b2430;--soft:#566373;--line:#d5dbe2;--accent:#0072b2;--warm:#b34700;--good:#00694b;--panel:#f3f6f9}
html,body{height:auto}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.slide{display:block!important;width:297mm;height:166.5mm;break-after:page;break-inside:avoid}
.inner{font-size:6.1mm}
nav,dialog,#progress,#say,.notes{display:none!important}
}
"""

SCRIPT = r"""
(() => {
  const slides = [...document.querySelectorAll('.slide')], body = document.body, help = document.getElementById('help');
  let at = 0, zoom = 1, speaker = null, started = Date.now(), hide = 0;
  const wanted = () => Math.min(slides.length, Math.max(1, parseInt(location.hash.slice(1), 10) || 1)) - 1;
  const title = n => slides[n] ? slides[n].getAttribute('aria-label') : 'the end';
  function tell() {
    if (!speaker || speaker.closed) return;
    const d = speaker.document;
    d.title = title(at);
    d.getElementById('now').textContent = title(at);
    d.getElementById('next').textContent = 'Next: ' + title(at + 1);
    d.getElementById('notes').innerHTML = slides[at].nextElementSibling.innerHTML;
    d.getElementById('notes').scrollTop = 0;
  }
  function fit() {  // a formula wider than its slide is drawn smaller; all slides are laid out for a moment
    body.classList.add('overview');
    document.querySelectorAll('.slide .parts').forEach(box => {
      const wide = Math.max(...[...box.children].map(m => m.getBoundingClientRect().width));
      if (wide > box.clientWidth) box.style.fontSize = Math.floor(98 * box.clientWidth / wide) + '%';
    });
    body.classList.remove('overview');
  }
  function show(n, quiet) {
    at = Math.min(slides.length - 1, Math.max(0, n));
    slides.forEach((s, k) => { s.classList.toggle('on', k === at); s.querySelector('.inner').scrollTop = 0; });
    history.replaceState(null, '', '#' + (at + 1));
    document.getElementById('progress').style.width = 100 * (at + 1) / slides.length + '%';
    if (!quiet) document.getElementById('say').textContent = title(at);
    if (body.classList.contains('overview')) slides[at].scrollIntoView({block: 'nearest'});
    tell();
  }
  function openSpeaker() {
    speaker = window.open('', 'posetutor-notes', 'width=760,height=640');
    if (!speaker) return;
    const d = speaker.document;
    d.body.innerHTML = '<style>:root{color-scheme:light dark}body{font:1.15rem/1.5 system-ui,sans-serif;margin:1.2rem;color:CanvasText;background:Canvas}' +
      '#bar{display:flex;justify-content:space-between;gap:1rem}#now{font-weight:650}#next{opacity:.75}.equation{display:flex;justify-content:center;gap:1em;margin:.6em}</style>' +
      '<div id="bar"><span id="now"></span><span id="clock"></span></div><p id="next"></p><hr><div id="notes"></div>';
    started = Date.now();
    d.addEventListener('keydown', key);
    tell();
  }
  setInterval(() => {
    if (!speaker || speaker.closed) return;
    const s = Math.floor((Date.now() - started) / 1000);
    speaker.document.getElementById('clock').textContent = new Date().toTimeString().slice(0, 5) + '  +' + Math.floor(s / 60) + ':' + String(s % 60).padStart(2, '0');
  }, 1000);
  const columns = () => body.classList.contains('overview') ? slides.filter(s => s.offsetTop === slides[0].offsetTop).length : 1;
  const act = {
    next: () => show(at + 1), previous: () => show(at - 1), first: () => show(0), last: () => show(slides.length - 1),
    down: () => show(at + columns()), up: () => show(at - columns()),
    notes: () => body.classList.toggle('with-notes'), speaker: openSpeaker,
    overview: () => { body.classList.toggle('overview'); body.classList.remove('with-notes'); show(at); },
    full: () => document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen(),
    help: () => help.open ? help.close() : help.showModal(),
    larger: () => scale(zoom * 1.1), smaller: () => scale(zoom / 1.1), usual: () => scale(1),
    choose: () => { if (body.classList.contains('overview')) act.overview(); else show(at + 1); }
  };
  function scale(z) { zoom = Math.min(2.5, Math.max(.6, z)); document.documentElement.style.setProperty('--zoom', zoom); }
  const keys = {ArrowRight: 'next', ArrowLeft: 'previous', ArrowDown: 'down', ArrowUp: 'up', ' ': 'next', PageDown: 'next', PageUp: 'previous', Home: 'first', End: 'last',
    Enter: 'choose', n: 'notes', s: 'speaker', o: 'overview', f: 'full', '?': 'help', '+': 'larger', '=': 'larger', '-': 'smaller', '0': 'usual'};
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.closest && event.target.closest('button,a');
    if (onButton && (event.key === ' ' || event.key === 'Enter')) return;
    if (help.open && event.key !== '?') return;
    if (event.key === 'Escape' && body.classList.contains('overview')) return act.overview();
    const name = event.key === ' ' && event.shiftKey ? 'previous' : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (name) { event.preventDefault(); act[name](); }
  }
  document.addEventListener('keydown', key);
  document.querySelectorAll('nav button').forEach(b => b.addEventListener('click', () => { act[b.dataset.do](); }));
  slides.forEach((s, k) => s.addEventListener('click', () => { if (body.classList.contains('overview')) { show(k); act.overview(); } }));
  let touch = null;
  document.addEventListener('touchstart', e => { touch = e.changedTouches[0]; }, {passive: true});
  document.addEventListener('touchend', e => {
    if (!touch || body.classList.contains('overview')) return;
    const dx = e.changedTouches[0].clientX - touch.clientX, dy = e.changedTouches[0].clientY - touch.clientY;
    if (Math.abs(dx) > 60 && Math.abs(dx) > 2 * Math.abs(dy)) show(at + (dx < 0 ? 1 : -1));
  }, {passive: true});
  document.addEventListener('mousemove', () => { body.classList.add('mouse'); clearTimeout(hide); hide = setTimeout(() => body.classList.remove('mouse'), 1500); });
  window.addEventListener('hashchange', () => show(wanted()));
  body.classList.add('live');
  fit();
  show(wanted(), true);
})();
"""
