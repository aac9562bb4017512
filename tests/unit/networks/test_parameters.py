"""Sizes of MegaSR on SD 2.1-base, counted on the meta device."""

from megasr.networks.parameters import build_on_meta, parameter_table
from tests.helpers.networks import adapter


def test_sd21_has_16_and_7_sites_and_its_known_size():
    config = adapter(guidance=("canny", "superpixel"), image=True, image_width=1280)
    rows = {row.part: row for row in parameter_table(build_on_meta("sd21-base"), config)}
    assert rows["U-Net"].frozen == 865_910_724  # Stable Diffusion 2.x's U-Net
    assert rows["VAE"].frozen == 83_653_863
    assert rows["U-Net CSM"].sites == rows["U-Net MSFM"].sites == 16
    assert rows["ControlNet CSM"].sites == rows["ControlNet MSFM"].sites == 7
    assert rows["U-Net"].trained == rows["VAE"].trained == rows["text encoder"].trained == 0
    assert rows["all"].trained == sum(row.trained for part, row in rows.items() if part != "all")


def test_sd21_at_768_px_and_sd_turbo_have_the_sizes_of_sd21_base():
    base, large, turbo = (build_on_meta(name) for name in ("sd21-base", "sd21-768v", "sd-turbo"))
    assert parameter_table(base, adapter()) == parameter_table(large, adapter()) == parameter_table(turbo, adapter())
    assert (base.native_px, large.native_px, turbo.native_px) == (512, 768, 512)
    assert large.scheduler.config.prediction_type == "v_prediction"


def test_parts_that_are_off_are_not_there():
    rows = {row.part for row in parameter_table(build_on_meta("sd21-base"), adapter(controlnet=False, image=True))}
    assert rows == {"VAE", "text encoder", "U-Net", "U-Net CSM", "all"}


def test_sd35_has_24_and_12_sites_and_its_known_size():
    config = adapter(guidance=("canny", "superpixel"), image=True, image_width=1280)
    rows = {row.part: row for row in parameter_table(build_on_meta("sd35-medium"), config)}
    positions = 384**2 * 1536
    assert rows["MMDiT"].frozen == 2_243_171_520 + positions  # Stable Diffusion 3.5 medium's transformer
    assert rows["MMDiT CSM"].sites == rows["MMDiT MSFM"].sites == 24
    assert rows["ControlNet CSM"].sites == rows["ControlNet MSFM"].sites == 12
    assert rows["MMDiT CSM"].trained == 24 * 1536 and rows["CSM connector"].trained == 1281 * 1536
    assert rows["ControlNet"].trained > 1e9 and rows["ControlNet"].frozen < positions, "its positions are the prior's"


def test_only_large_denoisers_have_one_connector_and_gates_by_channel():
    def trained_in_csm(prior: str, **form) -> int:
        rows = parameter_table(build_on_meta(prior), adapter(image=True, image_width=1280, **form))
        return sum(row.trained for row in rows if row.part.endswith(("CSM", "CSM connector")))

    own, shared = {"gate": "linear", "connector": "per_site"}, {"gate": "channel", "connector": "shared"}
    for prior, by_default, other in (("sd21-base", own, shared), ("sd35-medium", shared, own)):
        assert trained_in_csm(prior) == trained_in_csm(prior, **by_default) != trained_in_csm(prior, **other)


def test_sdxl_has_11_and_5_sites_and_its_known_size():
    config = adapter(guidance=("canny", "superpixel"), image=True, image_width=1280)
    rows = {row.part: row for row in parameter_table(build_on_meta("sdxl-base"), config)}
    assert rows["U-Net"].frozen == 2_567_463_684  # Stable Diffusion XL's U-Net
    assert rows["text encoder"].frozen == 123_060_480 + 694_659_840 and rows["VAE"].frozen == 83_653_863
    assert rows["U-Net CSM"].sites == rows["U-Net MSFM"].sites == 11
    assert rows["ControlNet CSM"].sites == rows["ControlNet MSFM"].sites == 5
    assert rows["U-Net CSM"].trained == 6 * 1280 + 5 * 640 and rows["CSM connector"].trained == 1281 * 2048
    assert rows["ControlNet"].frozen == 0, "it has no positions of the prior's"
