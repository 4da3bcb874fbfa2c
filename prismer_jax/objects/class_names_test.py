import pytest

from prismer_jax import labels
from prismer_jax.objects.class_names import class_names


@pytest.mark.parametrize(
    ("expert", "known"),
    [
        ("seg_coco", {0: "person", 79: "toothbrush", 132: "rug"}),
        ("seg_ade", {0: "wall", 2: "sky", 149: "flag"}),
        ("obj_detection", {0: "bottle", 10: "footwear, sneakers", 721: "trailer"}),
    ],
)
def test_every_class_has_a_name(expert, known):
    names = class_names(expert)
    assert len(names) == labels.EXPERTS[expert].num_classes
    assert {i: names[i] for i in known} == known
    assert all(name and name == name.strip() for name in names)


def test_maps_without_classes_have_no_names():
    assert class_names("depth") == class_names("ocr_detection") == ()


def test_the_names_are_those_of_the_official_tables(shared):
    from prismer_jax.weights import label_tables, safe

    for expert, file in label_tables.CLASSES.items():
        official = safe.load_tree(shared / "data/label_embeddings" / file)["labels"]
        if expert != "obj_detection":  # whose table has the names of the data sets, several a class
            assert list(class_names(expert)) == [name.strip() for name in official]
