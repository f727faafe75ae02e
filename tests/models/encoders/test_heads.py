"""The two heads: shapes, order of the inputs, and values computed explicitly."""

import torch

from sepscene.models.encoders.heads import CoincidenceHead, SimilarityHead


def test_similarity_head_is_linear_relu_linear() -> None:
    torch.manual_seed(0)
    head = SimilarityHead(16)
    h_BD = torch.randn(3, 16)
    hidden = (h_BD @ head.first.weight.T + head.first.bias).clamp(min=0)
    torch.testing.assert_close(head(h_BD), hidden @ head.last.weight.T + head.last.bias)
    assert head(h_BD).shape == (3, 128) and head.first.out_features == 512


def test_coincidence_head_splits_into_the_mixture_and_the_channel() -> None:
    torch.manual_seed(0)
    head = CoincidenceHead(16)
    h_m_ND = torch.randn(5, 16)
    h_c_ND = torch.randn(5, 16)
    of_mixture, of_channel = head.first.weight.split(16, dim=1)
    hidden = (h_m_ND @ of_mixture.T + h_c_ND @ of_channel.T + head.first.bias).clamp(min=0)
    logit_N = head(h_m_ND, h_c_ND)
    torch.testing.assert_close(logit_N, (hidden @ head.last.weight.T + head.last.bias)[:, 0])
    assert logit_N.shape == (5,)
    assert not torch.allclose(logit_N, head(h_c_ND, h_m_ND))
