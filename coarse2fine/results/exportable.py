"""Conversion of an analysis to files, and to objects of other libraries."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from coarse2fine.model import Model, load_model
from coarse2fine.models.runtime import Runtime
from coarse2fine.region import Region
from coarse2fine.results.coco import Found, coco_dict, file_name, write_coco
from coarse2fine.results.detections import detections
from coarse2fine.results.exporters import exporter_for
from coarse2fine.results.geodataframe import geodataframe
from coarse2fine.results.geojson import write_geojson, write_world_geojson
from coarse2fine.results.maps import Maps, write_maps
from coarse2fine.results.napari_layers import Layer, cells_layers, image_layer, regions_layer
from coarse2fine.results.place import write_mask
from coarse2fine.results.tables import Table, as_frame, tiles_table, write_csv, write_parquet
from coarse2fine.results.tiles import (
    anndata_module,
    as_anndata,
    h5py_module,
    interesting_patches,
    with_features,
    write_patches,
)
from coarse2fine.steps.plan import Plan
from coarse2fine.tiling.geometry import GeoReference
from coarse2fine.tiling.image import Image

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from supervision import Detections


@dataclass(frozen=True)
class Exportable:
    """The finds in an image and the windows that were refined, with their conversions; see `Analysis`."""

    image: Image
    regions: tuple[Region, ...]
    interest: NDArray[np.float32]
    plan: Plan
    refined: NDArray[np.bool_]
    cell: int

    @property
    def labels(self) -> dict[str, int]:
        """Number of regions of each class, the most frequent first."""
        counts = Counter(region.label for region in self.regions)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def tiles(self) -> pd.DataFrame:
        """`tiles_table` as a pandas DataFrame (extra ``pandas``)."""
        return as_frame(self.tiles_table)

    @property
    def tiles_table(self) -> Table:
        """The windows of the plan, best first, as columns; see `coarse2fine.results.tables.tiles_table`."""
        return tiles_table(self.plan, self.cell, self.image.shape[:2], self.refined, self.regions)

    def to(self, path: str | os.PathLike[str]) -> Path:
        """Write a file in the format of its suffix.

        ``.geojson``: `to_geojson`, in pixels; ``.json``: `to_coco` (either with ``.gz``); ``.csv``: `to_csv`;
        ``.parquet``: `to_parquet`; ``.h5``: `to_h5`, without features; ``.zarr``: `to_ome_zarr`; ``.png``, ``.pdf``
        and ``.svg``: `plot`; others by `coarse2fine.register_exporter`.

        Raises
        ------
        ValueError
            If the suffix is unknown; the message lists the known ones.
        """
        target = Path(path)
        exporter_for(target)(target, self)
        return target

    def to_geojson(self, path: str | os.PathLike[str], *, world: bool = False) -> Path:
        """Write the regions as GeoJSON; gzipped if the name ends in ``.gz``.

        Parameters
        ----------
        path : path
        world : bool
            Whether to write world coordinates of a georeferenced image, for GIS programs; the default is
            full-resolution pixels, for QuPath.

        Raises
        ------
        ValueError
            If the image has no world coordinates.
        """
        geo = self._geo(world=world)
        return write_geojson(path, self.regions) if geo is None else write_world_geojson(path, self.regions, geo)

    def to_geodataframe(self, *, world: bool = False) -> GeoDataFrame:
        """The regions as a GeoDataFrame (extra ``geopandas``); see `coarse2fine.results.geodataframe.geodataframe`.

        Parameters
        ----------
        world : bool
            Whether to use world coordinates of a georeferenced image; the default is full-resolution pixels, (x, y).

        Raises
        ------
        MissingExtraError
            If GeoPandas is not installed.
        ValueError
            If the image has no world coordinates.
        """
        return geodataframe(self.regions, self._geo(world=world))

    @overload
    def to_coco(self, path: str | os.PathLike[str]) -> Path: ...
    @overload
    def to_coco(self, path: None = None) -> dict[str, Any]: ...
    def to_coco(self, path: str | os.PathLike[str] | None = None) -> Path | dict[str, Any]:
        """Write the regions as a COCO data set of this one image; see `coarse2fine.results.coco.write_coco`.

        Parameters
        ----------
        path : path, optional
            By default nothing is written, and the data set is returned, as JSON values.
        """
        image = self.image
        name = file_name(image.path or image.location, image.name)
        found = [Found(name, image.shape[:2], self.regions, tuple(self.labels))]
        return coco_dict(found) if path is None else write_coco(path, found)

    def to_supervision(self, *, masks: bool = False) -> Detections:
        """The regions as ``supervision.Detections`` (extra ``supervision``).

        Parameters
        ----------
        masks : bool
            Whether to add a mask of the whole image for each region.

        See Also
        --------
        coarse2fine.results.detections.detections : The fields, and the errors.
        """
        return detections(self.regions, self.image.shape[:2], masks=masks)

    def to_napari_layers(self) -> list[Layer]:
        """Image, maps and finds as layers for napari, which need not be installed (extra ``napari``).

        Each becomes a layer by ``viewer.add_layer(napari.layers.Layer.create(*layer))``.

        Returns
        -------
        list of (data, dict, str)
            Data, arguments and type of each: the image with its levels, which are read when they are shown, so it must
            stay open; interest, if there was a scan, and refined cells; and the outlines of the finds, with ``label``
            and ``score`` as features.

        Raises
        ------
        ImageError
            If the image is closed or missing.
        """
        cells = cells_layers(self.interest, self.refined, self.cell)
        return [image_layer(self.image), *cells, regions_layer(self.regions)]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `tiles_table` as CSV."""
        return write_csv(path, self.tiles_table)

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write `tiles_table` as Parquet."""
        return write_parquet(path, self.tiles_table)

    def to_h5(
        self, path: str | os.PathLike[str], model: str | os.PathLike[str] | Model | None = None, *, tile: int = 256
    ) -> Path:
        """Write the tiles with refined windows as HDF5, in the layout of CLAM and TRIDENT (extra ``features``).

        Parameters
        ----------
        path : path
        model : path, str or Model, optional
            Its refine net describes each tile: ``features`` holds the means of the high-level features. Without a
            model only ``coords`` are written, the input of those tools' encoders.
        tile : int
            Side of a tile in full-resolution pixels. Tiles lie on a regular grid; those with a refined window in them
            are written.

        Raises
        ------
        ImageError
            If features are requested and the image is missing.
        MissingExtraError
            If h5py is not installed.
        ModelError
            If the model cannot be loaded.
        ValueError
            If the tile is not a whole number of the model's fine cells.
        """
        h5py_module()
        patches = interesting_patches(self.plan.covered() & self.refined, self.cell, tile)
        if model is not None:
            patches = with_features(patches, self.image, load_model(model), Runtime.choose())
        return write_patches(path, patches, self.image)

    def to_anndata(self, model: str | os.PathLike[str] | Model, *, tile: int = 256) -> AnnData:
        """The tiles of `to_h5`, with features, as an annotated table (extra ``anndata``).

        Parameters
        ----------
        model : path, str or Model
        tile : int
            See `to_h5`, also for the errors.
        """
        anndata_module()
        patches = interesting_patches(self.plan.covered() & self.refined, self.cell, tile)
        return as_anndata(with_features(patches, self.image, load_model(model), Runtime.choose()), self.image)

    def to_mask(self, path: str | os.PathLike[str]) -> Path:
        """Write the refined cells as ``.png`` or ``.geojson``; see `coarse2fine.results.place.write_mask`."""
        return write_mask(path, self.refined, self.cell, self.image.shape[:2])

    def to_ome_zarr(self, path: str | os.PathLike[str]) -> Path:
        """Write maps of cells, and labels of pixels, as OME-Zarr 0.5; see `coarse2fine.results.maps.write_maps`."""
        image = self.image
        maps = Maps(image.name, image.shape[:2], image.mpp, self.cell, self.interest, self.refined, self.regions)
        return write_maps(path, maps)

    def _geo(self, *, world: bool) -> GeoReference | None:
        """The image's georeference if world coordinates are requested; None for pixels."""
        if world and self.image.geo is None:
            raise ValueError(f"{self.image.name} is not georeferenced; write its regions in pixels (world=False)")
        return self.image.geo if world else None
