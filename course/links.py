"""Bring the last line of every chapter, which leads to the chapters before and after it, up to date.

    python course/links.py
"""

from posetutor.course.routes import write_links

if __name__ == "__main__":
    changed = write_links()
    print(f"links brought up to date in {', '.join(changed)}" if changed else "all links are up to date")
