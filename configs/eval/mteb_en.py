"""English MTEB as it was in the paper's time: 56 tasks of seven types, each with its own main score.

    python -m e5jax.evaluate --config configs/eval/mteb_en.py --model runs/e5_mistral_7b

The numbers beside it: E5-mistral-7b with full data, Table 17 of arXiv 2401.00368; their mean is its 66.6. Texts are cut
to 512 tokens, as there. mteb calls this set "MTEB(eng, v1)".
"""

import beir

from e5jax.config import EvaluateConfig


PAPER = {
    # Classification
    "AmazonCounterfactualClassification": 78.7,
    "AmazonPolarityClassification": 95.9,
    "AmazonReviewsClassification": 55.8,
    "Banking77Classification": 88.2,
    "EmotionClassification": 49.8,
    "ImdbClassification": 94.8,
    "MassiveIntentClassification": 80.6,
    "MassiveScenarioClassification": 82.4,
    "MTOPDomainClassification": 96.1,
    "MTOPIntentClassification": 86.1,
    "ToxicConversationsClassification": 69.6,
    "TweetSentimentExtractionClassification": 63.7,
    # Clustering
    "ArxivClusteringP2P": 50.5,
    "ArxivClusteringS2S": 45.5,
    "BiorxivClusteringP2P": 43.5,
    "BiorxivClusteringS2S": 40.2,
    "MedrxivClusteringP2P": 38.2,
    "MedrxivClusteringS2S": 37.5,
    "RedditClustering": 57.7,
    "RedditClusteringP2P": 66.5,
    "StackExchangeClustering": 73.1,
    "StackExchangeClusteringP2P": 45.9,
    "TwentyNewsgroupsClustering": 54.3,
    # PairClassification
    "SprintDuplicateQuestions": 95.7,
    "TwitterSemEval2015": 81.6,
    "TwitterURLCorpus": 87.8,
    # Reranking
    "AskUbuntuDupQuestions": 67.0,
    "MindSmallReranking": 32.6,
    "SciDocsRR": 86.3,
    "StackOverflowDupQuestions": 54.9,
    # STS
    "BIOSSES": 85.5,
    "SICK-R": 82.6,
    "STS12": 79.7,
    "STS13": 88.4,
    "STS14": 84.5,
    "STS15": 90.4,
    "STS16": 87.7,
    "STS17": 91.8,
    "STS22": 67.0,
    "STSBenchmark": 88.6,
    # Summarization
    "SummEval": 31.4,
    # Retrieval
    **beir.PAPER,
}


def get_config() -> EvaluateConfig:
    return EvaluateConfig(
        output="runs/eval/mteb_en",
        model=("intfloat/e5-mistral-7b-instruct",),
        tasks=("MTEB(eng, v1)",),
        max_length=512,
        paper=PAPER,
    )
