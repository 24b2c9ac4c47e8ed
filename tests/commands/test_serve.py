from tests.commands.conftest import said


def test_a_store_that_cannot_be_one_is_said_before_the_server_starts(mtf):
    refused = mtf("serve", "--port", 0, "--store", "nowhere")
    said(refused, 1, "store_url = 'nowhere': use file:///folder, the path from the root, or s3://bucket/prefix")
