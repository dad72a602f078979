"""Archive the Java classes that Spark and Delta load, so that local sessions map them instead of reading jars.

A local Spark start and its first queries spend much of their time on loading and verifying some 20,000
classes. Java keeps them, parsed, in an archive of its own (class data sharing, JEP 350): written once here at
the exit of a small session that does what the jobs do, and mapped by every later one
(`foundation.session`). A Java or a jar that has changed makes Java pass over the archive, without a word.

Run by the set-up with the virtual environment's interpreter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from pyspark.sql import Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from feature_eng import delta
from foundation.session import CLASS_ARCHIVE, local_java_options


def main() -> None:
    """Write the archive; the folder of the virtual environment is its place."""
    CLASS_ARCHIVE.unlink(missing_ok=True)
    options = f"{local_java_options()} -XX:ArchiveClassesAtExit={CLASS_ARCHIVE}"
    # A place on S3, so that its client's jars are there too for the session that is given one (9 MB).
    spark = delta.build_session(
        "hinet set-up", {"spark.driver.extraJavaOptions": options}, places=["s3://any/place"]
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            use_what_the_jobs_use(spark, Path(folder))
        finally:
            spark.stop()


def use_what_the_jobs_use(spark: delta.SparkSession, folder: Path) -> None:
    """Delta tables with and without a declared schema, joins, windows, arrays, JSON, text, Arrow."""
    raw = folder / "raw.csv"
    raw.write_text(
        "key,user,at,text,rating\n" + "".join(f"{i},u{i % 7},{i},a|b,{i % 5}\n" for i in range(500))
    )
    rows = spark.read.csv(str(raw), header=True, inferSchema=False).select(
        F.col("key").try_cast("bigint").alias("row_id"),
        F.trim("user").alias("user"),
        F.when(F.col("at").rlike(r"^\d+\z"), F.col("at").try_cast("bigint")).alias("at"),
        F.split("text", r"\|").alias("texts"),
        (F.col("rating").cast("double") > 3).cast("float").alias("label"),
        F.to_json(F.struct("key", "text")).alias("json"),
    )
    delta.write(rows, folder / "events")
    events = delta.read(spark, folder / "events", 0).persist()
    before = Window.partitionBy("user").orderBy("at").rangeBetween(Window.unboundedPreceding, -1)
    place = F.row_number().over(Window.partitionBy("user").orderBy(F.xxhash64("row_id"), "row_id"))
    rates = events.groupBy("user").agg(F.sum("label").alias("likes"), F.collect_list("at").alias("times"))
    examples = (
        events.withColumn("seen", F.count(F.lit(1)).over(before))
        .withColumn("place", place)
        .join(F.broadcast(rates), on="user", how="left")
        .withColumn("first", F.element_at(F.sort_array("times"), 1))
        .withColumn("split", F.when(F.col("place") > 5, "train").otherwise("test"))
    )
    names = events.select(F.explode("texts").alias("text")).groupBy("text").count().orderBy(F.desc("count"))
    known = spark.createDataFrame(
        [(row["text"], i) for i, row in enumerate(names.collect())], "text string, i int"
    )
    texts = known.agg(F.map_from_entries(F.collect_list(F.struct("text", "i"))).alias("of")).first()
    assert texts is not None
    schema = T.StructType(
        [
            T.StructField("row_id", T.LongType(), nullable=False),
            T.StructField("seen", T.IntegerType(), nullable=False),
            T.StructField("label", T.FloatType(), nullable=False),
            T.StructField("split", T.StringType(), nullable=False),
        ]
    )
    encoded = examples.withColumn("seen", F.col("seen").cast("int")).select(*schema.fieldNames())
    for _ in range(2):
        delta.write(
            encoded.repartition(4, "split").sortWithinPartitions("split", "row_id"),
            folder / "training",
            partition_by=["split"],
            schema=schema,
            properties={"hinet.contract": "set-up"},
            options={"maxRecordsPerFile": "100"},
        )
    training = delta.read(spark, folder / "training")
    training.groupBy("split").agg(
        F.count("*"), F.sum(F.xxhash64(*training.columns).cast("decimal(38, 0)"))
    ).collect()
    examples.limit(50).toPandas()


if __name__ == "__main__":
    sys.exit(main())
