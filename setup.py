"""Package metadata comes from settings.ini; the course notebooks travel inside the wheel as package data."""

import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
config = parser["DEFAULT"]


class BuildWithNotebooks(build_py):
    """Copy nbs/ into the built package, so that `posetutor lab` works from an installed wheel."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "posetutor" / "notebooks"
        shutil.rmtree(target, ignore_errors=True)
        for source in sorted((ROOT / "nbs").rglob("*")):
            relative = source.relative_to(ROOT / "nbs")
            hidden = any(part.startswith((".", "_")) for part in relative.parts)
            if source.is_file() and not hidden and source.suffix in {".ipynb", ".png", ".jpg"}:
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / relative)
        shutil.copyfile(ROOT / "course" / "routes.yml", target / "routes.yml")


setup(
    name=config["lib_name"],
    version=config["version"],
    description=config["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=config["author"],
    author_email=config["author_email"],
    url=config["git_url"],
    license="Apache-2.0",
    keywords=config["keywords"],
    packages=find_packages(include=["posetutor", "posetutor.*"]),
    package_data={"posetutor": ["weights/*", "assets/*"]},
    python_requires=f">={config['min_python']}",
    install_requires=config["requirements"].split(),
    extras_require={"course": config["course_requirements"].split(), "dev": (config["dev_requirements"] + " " + config["course_requirements"]).split()},
    entry_points={"console_scripts": [config["console_scripts"]]},
    cmdclass={"build_py": BuildWithNotebooks},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
