"""DataFrame -> Figure, one message each, one column (3.4 in) wide. Units stand in the column names.

Every figure says whether it shows something measured (real messages over links), emulated (messages that the program
itself holds back) or predicted (cost model). The colours are seaborn's palette for colour-blind readers.
"""

from hiertrain.figures.ablation import plot_ablation
from hiertrain.figures.claims import VERDICT_COLOURS, plot_claims
from hiertrain.figures.comparisons import plot_convergence, plot_ratios
from hiertrain.figures.granularity import ONE_PROCESS, plot_differences, plot_learning, plot_map, plot_shares
from hiertrain.figures.plans import plot_agreement, plot_errors, plot_overlap, plot_timeline, plot_times
from hiertrain.figures.profiles import plot_fit, plot_layer_times, plot_layers
from hiertrain.figures.scheduler import plot_gaps, plot_growth, plot_solve_times
from hiertrain.figures.speedups import plot_executions, plot_speedups, plot_sweeps
from hiertrain.figures.style import ACTION_COLOURS, POLICY_STYLES, SOURCES, Source, load_caption, save_figure, use_style
