"""Graph operators and the GCN baseline against PyG's layers."""

import pytest
import torch
from torch_geometric.nn import GCNConv, SAGEConv

from osmose import laws
from osmose.models import GCN, propagation
from osmose.operators import Graph

N = 9


@pytest.fixture
def directed():
    g = torch.Generator().manual_seed(3)
    edges = torch.unique(torch.randint(0, N - 1, (2, 25), generator=g), dim=1)  # the last node is isolated
    return edges, torch.rand(edges.shape[1], generator=g, dtype=torch.float64) + 0.1


def symmetric(edges, weight):
    both = torch.cat([edges, edges.flip(0)], 1)
    dense = torch.zeros(N, N, dtype=torch.float64).index_put(
        (both[1], both[0]), torch.cat([weight, weight]), accumulate=True
    )
    index = dense.nonzero().T.flip(0)
    return index, dense[index[1], index[0]]


def test_propagation_equals_gcnconv(directed):
    edges, weight = symmetric(*directed)
    conv = GCNConv(5, 4, bias=False).double()
    x = torch.randn(N, 5, dtype=torch.float64)
    off_diagonal = edges[0] != edges[1]  # PyG keeps the weight of a loop that is there; so do we
    for e, w in ((edges, weight), (edges[:, off_diagonal], weight[off_diagonal])):
        torch.testing.assert_close(propagation(e, w, N) @ conv.lin(x), conv(x, e, w))


def test_gcn_equals_two_gcnconvs(directed):
    edges, _ = symmetric(*directed)
    model = GCN(5, 4, 3, dropout=0.5).double().eval()
    convs = [GCNConv(5, 4).double(), GCNConv(4, 3).double()]
    for conv, weight, bias in zip(convs, model.weights, model.biases, strict=True):
        conv.lin.weight, conv.bias = weight.weight, bias
    x = torch.randn(N, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x, edges), convs[1](convs[0](x, edges).relu(), edges))
    torch.testing.assert_close(model(x, model.prepare_graph(edges, None, N)), model(x, edges))


def test_row_law_on_a_graph_equals_the_mean_of_sageconv(directed):
    edges, _ = directed
    conv = SAGEConv(5, 4, root_weight=False, bias=False).double()
    x = torch.randn(N, 5, dtype=torch.float64)
    mean = laws.row(Graph(edges, None, N, dtype=torch.float64))
    torch.testing.assert_close(conv.lin_l(mean @ x), conv(x, edges))


def test_gradients_reach_values_through_the_sparse_product(directed):
    edges, weight = symmetric(*directed)
    x = torch.randn(N, 5, dtype=torch.float64, requires_grad=True)
    conv = GCNConv(5, 4, bias=False).double()
    got = torch.autograd.grad((propagation(edges, weight, N) @ conv.lin(x)).sin().sum(), x)
    want = torch.autograd.grad(conv(x, edges, weight).sin().sum(), x)
    torch.testing.assert_close(got, want)
