"""Scores a table of log-ins on Spark.

    spark-submit notebooks/spark_scoring.py model.tar.gz LOG_INS SCORES

LOG_INS is a Parquet table with the columns ``entity`` and ``ip``, both strings. SCORES has its columns and ``score``,
null where a row cannot be read. The Python of every machine needs this package.
"""

import sys
from collections.abc import Iterator

import pandas as pd
from pyspark import SparkFiles
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import FloatType

from ipinsights.model.scoring import Scorer


@pandas_udf(FloatType())
def score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
    """The score of each (entity, address); null where they cannot be read."""
    scorer = Scorer.open(SparkFiles.get("model"))  # mapped, once a task
    for entities, addresses in batches:
        yield pd.Series(scorer.score_columns(entities, addresses))


def main(model: str, log_ins: str, scores: str) -> None:
    """Score one table into another."""
    spark = SparkSession.builder.appName("ipinsights").getOrCreate()
    spark.sparkContext.addArchive(f"{model}#model")  # brought to every machine, and unpacked there as "model"
    table = spark.read.parquet(log_ins)
    table.withColumn("score", score("entity", "ip")).write.parquet(scores)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
