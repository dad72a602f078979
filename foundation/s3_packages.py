"""What Spark lacks for S3, by Maven's coordinates: Hadoop's client, as Spark 4.0 brings it, and Amazon's SDK."""

from __future__ import annotations

# Of the SDK the parts that the client calls (9 MB): the bundle that it asks for itself has 600 MB.
_SDK = "2.24.12"
S3_PACKAGES = (
    "org.apache.hadoop:hadoop-aws:3.4.1",
    f"software.amazon.awssdk:s3:{_SDK}",
    f"software.amazon.awssdk:s3-transfer-manager:{_SDK}",
    f"software.amazon.awssdk:sts:{_SDK}",
)
# And what Spark has on board.
S3_EXCLUDES = (
    "software.amazon.awssdk:bundle",
    "software.amazon.awssdk.crt:*",
    "org.wildfly.openssl:*",
    "io.netty:*",
    "org.slf4j:*",
    "org.apache.httpcomponents:*",
    "commons-codec:*",
    "commons-logging:*",
)
