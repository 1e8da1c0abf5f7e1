"Build script: everything it needs to know stands in settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    ],
    project_urls={"Source": cfg["git_url"]},
    packages=find_packages(include=["avsrepro", "avsrepro.*"]),
    package_data={"avsrepro": ["papers/*/published/*.csv", "papers/*/register.csv", "experiments/profiles/*.yaml", "experiments/recipes/*.yaml", "nn/*.csv", "data/bank_lists/*.csv", "report/site_files/*", "models/release_maps/*.csv"]},
    include_package_data=True,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "cuda", "video", "site")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],
    },
    zip_safe=False,
)
