from tests.commands.conftest import said


def test_a_store_that_cannot_be_one_is_said_before_the_server_starts(mtf):
    said(mtf("serve", "--port", 0, "--store", "nowhere"), 1, "store_url = 'nowhere': use file:///folder or s3://bucket/prefix")
