"""A notebook in JupyterLab as the tests drive it: open, run, go to a control with the keyboard, watch a picture change."""

from urllib.parse import quote

PANEL = "window.jupyterapp.shell.currentWidget"
READY = """async path => {
  const app = window.jupyterapp;
  if (!app) return false;
  await app.restored;
  const panel = app.shell.currentWidget;
  if (!panel || !panel.sessionContext || panel.context.path !== path) return false;
  await panel.context.ready;
  await panel.sessionContext.ready;
  return true;
}"""
CELLS = f"""() => [...{PANEL}.content.model.cells].map(cell => {{
  const data = cell.toJSON(), outputs = data.outputs || [];
  return {{code: data.cell_type === 'code', source: [].concat(data.source).join(''), tags: data.metadata.tags || [], count: data.execution_count ?? null,
          live: outputs.some(o => 'application/vnd.jupyter.widget-view+json' in (o.data || {{}})),
          errors: outputs.filter(o => o.output_type === 'error').map(o => `${{o.ename}}: ${{o.evalue}}`)}};
}})"""
# times: from a key press (the browser's own stamp of the event) to the frame after the new picture is loaded and decoded.
# own: the widget's share of that, from the kernel's stamp "busy" to its stamp on the message with the picture; the rest is Jupyter's and the browser's.
# And what else moved meanwhile.
WATCH = """cell => {
  const area = cell.querySelector('.jp-OutputArea'), image = cell.querySelector('img.widget-image');
  const w = window.watched = {key: null, times: [], own: [], busy: {}, pressed: 0, shown: 0, sizes: new Set(), heights: new Set(), pictures: new Set(), moved: 0, on: true};
  w.down = event => { if (event.key !== 'Tab') { w.key = event.timeStamp; w.pressed += 1; } };
  w.load = () => requestAnimationFrame(() => { if (w.key !== null) w.times.push(performance.now() - w.key); w.key = null; w.shown += 1; });
  w.heard = (_, {msg, direction}) => {
    if (direction !== 'recv') return;
    const parent = msg.parent_header.msg_id, date = Date.parse(msg.header.date);
    if (msg.header.msg_type === 'status' && msg.content.execution_state === 'busy') w.busy[parent] = date;
    if (msg.header.msg_type === 'comm_msg' && (msg.buffers || []).length && parent in w.busy) w.own.push(date - w.busy[parent]);
  };
  w.kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  w.kernel.anyMessage.connect(w.heard);
  document.addEventListener('keydown', w.down, true);
  image.addEventListener('load', w.load);
  w.observer = new MutationObserver(changes => { for (const change of changes) for (const node of [...change.addedNodes, ...change.removedNodes])
    if (node.nodeType === 1 && (node.matches('img, canvas, .jp-OutputArea-child') || node.querySelector('img, canvas'))) w.moved += 1; });
  w.observer.observe(area, {childList: true, subtree: true});
  const look = () => {
    if (!w.on) return;
    const box = image.getBoundingClientRect();
    w.sizes.add(`${Math.round(box.width)} x ${Math.round(box.height)}`);
    w.heights.add(Math.round(area.getBoundingClientRect().height));
    w.pictures.add(area.querySelectorAll('img, canvas').length);
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  w.stop = () => { w.on = false; w.observer.disconnect(); document.removeEventListener('keydown', w.down, true); image.removeEventListener('load', w.load);
    w.kernel.anyMessage.disconnect(w.heard);
    return {times: w.times, own: w.own, pressed: w.pressed, shown: w.shown, sizes: [...w.sizes], heights: [...w.heights], pictures: [...w.pictures], moved: w.moved}; };
}"""
# What is cut or covered: controls and picture against the visible width of the notebook. Empty when all is well.
LAYOUT = """cell => {
  const faults = [], pane = (cell.closest('.jp-WindowedPanel-outer') || cell.closest('.jp-Notebook')).getBoundingClientRect();
  const right = Math.min(pane.right, window.innerWidth) + 1, left = pane.left - 1;
  const controls = [...cell.querySelectorAll('.widget-hslider, .widget-dropdown, .widget-checkbox, .widget-radio-box, .widget-button, .widget-radio')];
  const boxes = controls.map(c => c.getBoundingClientRect());
  boxes.forEach((box, n) => {
    const name = controls[n].textContent.trim().slice(0, 30) || controls[n].className;
    if (box.width < 20 || box.height < 10) faults.push(`${name}: ${box.width} x ${box.height} px`);
    if (box.left < left || box.right > right) faults.push(`${name}: ends at ${Math.round(box.right)} px, the pane at ${Math.round(right)} px`);
    boxes.slice(0, n).forEach((other, m) => {
      const over = Math.min(box.right, other.right) - Math.max(box.left, other.left), under = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (over > 1 && under > 1 && !controls[n].contains(controls[m]) && !controls[m].contains(controls[n])) faults.push(`${name} covers another control`);
    });
  });
  for (const image of cell.querySelectorAll('img')) {
    const box = image.getBoundingClientRect(), ratio = box.width / box.height / (image.naturalWidth / image.naturalHeight);
    if (box.left < left || box.right > right) faults.push(`the picture ends at ${Math.round(box.right)} px, the pane at ${Math.round(right)} px`);
    if (Math.abs(ratio - 1) > 0.02) faults.push(`the picture is squeezed by ${ratio.toFixed(2)}`);
    if (box.width < Math.min(240, image.naturalWidth)) faults.push(`the picture is only ${Math.round(box.width)} px wide`);
    const tall = box.bottom - boxes[0].top;
    if (tall > pane.height) faults.push(`controls and picture take ${Math.round(tall)} px of a pane of ${Math.round(pane.height)} px: one cannot see both`);
  }
  return faults;
}"""
CHANGED = """before => new Promise(done => {
  const w = window.watched, end = performance.now() + 4000;
  const look = () => { if (w.shown > before) done(true); else if (performance.now() > end) { w.key = null; done(false); } else setTimeout(look, 5); };
  look();
})"""
CONTROLS = ".jupyter-widgets :is(.noUi-handle, select, input[type=checkbox], input[type=radio], button)"
HANDLE = "e => e.matches('.noUi-handle') ? e.parentElement.style.transform : null"  # where a slider stands; its aria-valuenow has one decimal only
KEYS = {"slider": ["ArrowRight"] * 10 + ["ArrowLeft"] * 10, "list": ["ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp"], "switch": ["Space"] * 4, "button": ["Space"]}


class LabNotebook:
    """One notebook, open in a page of its own; `path` is relative to the course."""

    def __init__(self, page, server: tuple, path: str):
        self.page, self.path = page, path
        address, token, _ = server
        page.goto(f"{address}/lab/tree/{quote(path)}?reset&token={token}")
        page.wait_for_selector(".jp-Notebook", timeout=120_000)
        page.wait_for_function(READY, arg=path, timeout=120_000)

    def cells(self) -> list[dict]:
        """Kind, source, tags, execution count and errors of every cell, and whether its output is a live view."""
        return self.page.evaluate(CELLS)

    def run_all(self, timeout_s: float = 300) -> None:
        """Run every cell and wait until the kernel has answered the last one."""
        self.page.evaluate("() => { window.finished = null; window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.finished = true; }); }")
        self.page.wait_for_function(f"() => window.finished && {PANEL}.sessionContext.session?.kernel?.status === 'idle'", timeout=1000 * timeout_s)

    def cell(self, index: int):
        """The element of one cell, scrolled into view."""
        self.page.evaluate(f"async i => {{ const c = {PANEL}.content; c.activeCellIndex = i; await c.scrollToItem(i, 'start'); }}", index)
        return self.page.locator(".jp-Notebook-cell").nth(index)

    def hide_sidebar(self) -> None:
        """What one does in a narrow window: Ctrl+B."""
        self.page.evaluate("async () => { const app = window.jupyterapp; if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area'); }")

    def window(self, width: int, height: int, zoom: float = 1.0) -> None:
        """A window of width x height screen px at the browser's zoom, which leaves the page that many fewer CSS pixels."""
        self.page.set_viewport_size({"width": round(width / zoom), "height": round(height / zoom)})
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def close(self) -> None:
        """Stop the kernel and close the page."""
        self.page.evaluate(f"async () => {{ await {PANEL}.sessionContext.shutdown(); }}")
        self.page.context.close()


def kind(control) -> str:
    """slider, list, switch, radio or button."""
    return control.evaluate(
        "e => e.matches('.noUi-handle') ? 'slider' : e.tagName === 'SELECT' ? 'list' : e.type === 'checkbox' ? 'switch' : e.type === 'radio' ? 'radio' : 'button'"
    )


def tab_to(page, control, limit: int = 4) -> None:
    """Press Tab until the control has the focus; AssertionError after `limit` presses (a slider's number is a stop of its own)."""
    for _ in range(limit + 1):
        if control.evaluate("e => document.activeElement === e"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {control.evaluate('e => e.outerHTML.slice(0, 150)')}")


def drive(page, cell, rounds: int = 1) -> dict:
    """Go through every control of a live picture with Tab and press its keys; returns what `WATCH` saw, and the controls that changed nothing."""
    controls = cell.locator(CONTROLS)
    controls.first.focus()
    cell.evaluate(WATCH)
    dead = []
    for number in range(controls.count()):
        control, changed = controls.nth(number), 0
        tab_to(page, control)
        if control.evaluate("e => e.matches('.mod-active')"):
            continue  # the chosen one of a row of buttons: pressing it changes nothing
        for key in KEYS.get(kind(control), []) * rounds:
            before, place = page.evaluate("() => window.watched.shown"), control.evaluate(HANDLE)
            page.keyboard.press(key)
            if place is not None and control.evaluate(HANDLE) == place:
                continue  # the slider is at its end
            changed += page.evaluate(CHANGED, before)  # some steps change nothing, such as a decoder on a map without noise
        if not changed:
            dead.append(control.evaluate("e => (e.closest('button, .jupyter-widgets:not(.widget-box)') || e).textContent.trim().slice(0, 40)"))
        assert control.evaluate("e => document.activeElement === e"), "a key press took the focus away from its control"
    return {**page.evaluate("() => window.watched.stop()"), "dead": dead}


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(100 * share) // 100) - 1)]
