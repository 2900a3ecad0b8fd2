"""Write the BibTeX entries to cite for a certificate file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.methods.registry import find
from verifiers.results.rows import Certificates

_NUMBER = re.compile(r"\b\d{4}\.\d{5}\b")


@dataclass(frozen=True)
class Paper:
    """One entry.

    Attributes:
        key: BibTeX key.
        authors: joined by "and", as in BibTeX.
        title: capitals that BibTeX must keep are in braces.
        year: of the venue, or of the preprint.
        venue: conference; "" for a preprint.
        eprint: arXiv number; "" for none.
    """

    key: str
    authors: str
    title: str
    year: int
    venue: str = ""
    eprint: str = ""

    def bibtex(self) -> str:
        """Write the entry."""
        fields = {"title": self.title, "author": self.authors, "booktitle": self.venue, "year": str(self.year)}
        if self.eprint:
            fields |= {"eprint": self.eprint, "archivePrefix": "arXiv"}
        kind = "inproceedings" if self.venue else "misc"
        return _entry(kind, self.key, {name: value for name, value in fields.items() if value})


_NEURIPS = "Advances in Neural Information Processing Systems"
_ICML = "International Conference on Machine Learning"
_ICLR = "International Conference on Learning Representations"

PAPERS = (
    Paper(
        "hinton2015distilling",
        "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
        "Distilling the Knowledge in a Neural Network",
        2015,
        eprint="1503.02531",
    ),
    Paper(
        "carlini2017towards",
        "Carlini, Nicholas and Wagner, David",
        "Towards Evaluating the Robustness of Neural Networks",
        2017,
        "IEEE Symposium on Security and Privacy",
        "1608.04644",
    ),
    Paper(
        "madry2018towards",
        "Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, Adrian",
        "Towards Deep Learning Models Resistant to Adversarial Attacks",
        2018,
        _ICLR,
        "1706.06083",
    ),
    Paper(
        "gowal2018effectiveness",
        "Gowal, Sven and Dvijotham, Krishnamurthy and Stanforth, Robert and Bunel, Rudy and Qin, Chongli and "
        "Uesato, Jonathan and Arandjelovic, Relja and Mann, Timothy and Kohli, Pushmeet",
        "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models",
        2018,
        eprint="1810.12715",
    ),
    Paper(
        "zhang2018efficient",
        "Zhang, Huan and Weng, Tsui-Wei and Chen, Pin-Yu and Hsieh, Cho-Jui and Daniel, Luca",
        "Efficient Neural Network Robustness Certification with General Activation Functions",
        2018,
        _NEURIPS,
        "1811.00866",
    ),
    Paper(
        "zhang2019theoretically",
        "Zhang, Hongyang and Yu, Yaodong and Jiao, Jiantao and Xing, Eric P. and El Ghaoui, Laurent and "
        "Jordan, Michael I.",
        "Theoretically Principled Trade-off between Robustness and Accuracy",
        2019,
        _ICML,
        "1901.08573",
    ),
    Paper(
        "cohen2019certified",
        "Cohen, Jeremy and Rosenfeld, Elan and Kolter, J. Zico",
        "Certified Adversarial Robustness via Randomized Smoothing",
        2019,
        _ICML,
        "1902.02918",
    ),
    Paper(
        "goldblum2020adversarially",
        "Goldblum, Micah and Fowl, Liam and Feizi, Soheil and Goldstein, Tom",
        "Adversarially Robust Distillation",
        2020,
        "AAAI Conference on Artificial Intelligence",
        "1905.09747",
    ),
    Paper(
        "salman2019provably",
        "Salman, Hadi and Li, Jerry and Razenshteyn, Ilya and Zhang, Pengchuan and Zhang, Huan and "
        "Bubeck, S{\\'e}bastien and Yang, Greg",
        "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers",
        2019,
        _NEURIPS,
        "1906.04584",
    ),
    Paper(
        "fazlyab2019efficient",
        "Fazlyab, Mahyar and Robey, Alexander and Hassani, Hamed and Morari, Manfred and Pappas, George J.",
        "Efficient and Accurate Estimation of {L}ipschitz Constants for Deep Neural Networks",
        2019,
        _NEURIPS,
        "1906.04893",
    ),
    Paper(
        "zhang2020towards",
        "Zhang, Huan and Chen, Hongge and Xiao, Chaowei and Gowal, Sven and Stanforth, Robert and Li, Bo and "
        "Boning, Duane and Hsieh, Cho-Jui",
        "Towards Stable and Efficient Training of Verifiably Robust Neural Networks",
        2020,
        _ICLR,
        "1906.06316",
    ),
    Paper(
        "qin2019adversarial",
        "Qin, Chongli and Martens, James and Gowal, Sven and Krishnan, Dilip and Dvijotham, Krishnamurthy and "
        "Fawzi, Alhussein and De, Soham and Stanforth, Robert and Kohli, Pushmeet",
        "Adversarial Robustness through Local Linearization",
        2019,
        _NEURIPS,
        "1907.02610",
    ),
    Paper(
        "paulsen2020reludiff",
        "Paulsen, Brandon and Wang, Jingbo and Wang, Chao",
        "{ReluDiff}: Differential Verification of Deep Neural Networks",
        2020,
        "International Conference on Software Engineering",
        "2001.03662",
    ),
    Paper(
        "yang2020randomized",
        "Yang, Greg and Duan, Tony and Hu, J. Edward and Salman, Hadi and Razenshteyn, Ilya and Li, Jerry",
        "Randomized Smoothing of All Shapes and Sizes",
        2020,
        _ICML,
        "2002.08118",
    ),
    Paper(
        "xu2020automatic",
        "Xu, Kaidi and Shi, Zhouxing and Zhang, Huan and Wang, Yihan and Chang, Kai-Wei and Huang, Minlie and "
        "Kailkhura, Bhavya and Lin, Xue and Hsieh, Cho-Jui",
        "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
        2020,
        _NEURIPS,
        "2002.12920",
    ),
    Paper(
        "jeong2020consistency",
        "Jeong, Jongheon and Shin, Jinwoo",
        "Consistency Regularization for Certified Robustness of Smoothed Classifiers",
        2020,
        _NEURIPS,
        "2006.04062",
    ),
    Paper(
        "xu2021fast",
        "Xu, Kaidi and Zhang, Huan and Wang, Shiqi and Wang, Yihan and Jana, Suman and Lin, Xue and Hsieh, Cho-Jui",
        "Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel "
        "Incomplete Verifiers",
        2021,
        _ICLR,
        "2011.13824",
    ),
    Paper(
        "chiu2025sdp",
        "Chiu, Hong-Ming and Chen, Hao and Zhang, Huan and Zhang, Richard Y.",
        "{SDP-CROWN}: Efficient Bound Propagation for Neural Network Verification with Tightness of Semidefinite "
        "Programming",
        2025,
        _ICML,
        "2506.06665",
    ),
    Paper(
        "wang2021beta",
        "Wang, Shiqi and Zhang, Huan and Xu, Kaidi and Lin, Xue and Jana, Suman and Hsieh, Cho-Jui and Kolter, J. Zico",
        "Beta-{CROWN}: Efficient Bound Propagation with Per-neuron Split Constraints for Neural Network Robustness "
        "Verification",
        2021,
        _NEURIPS,
        "2103.06624",
    ),
    Paper(
        "zhu2022reliable",
        "Zhu, Jianing and Yao, Jiangchao and Han, Bo and Zhang, Jingfeng and Liu, Tongliang and Niu, Gang and "
        "Zhou, Jingren and Xu, Jianliang and Yang, Hongxia",
        "Reliable Adversarial Distillation with Unreliable Teachers",
        2022,
        _ICLR,
        "2106.04928",
    ),
    Paper(
        "zi2021revisiting",
        "Zi, Bojia and Zhao, Shihao and Ma, Xingjun and Jiang, Yu-Gang",
        "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
        2021,
        "IEEE/CVF International Conference on Computer Vision",
        "2108.07969",
    ),
    Paper(
        "shao2021how",
        "Shao, Rulin and Yi, Jinfeng and Chen, Pin-Yu and Hsieh, Cho-Jui",
        "How and When Adversarial Robustness Transfers in Knowledge Distillation?",
        2021,
        eprint="2110.12072",
    ),
    Paper(
        "maroto2022benefits",
        "Maroto, Javier and Ortiz-Jim{\\'e}nez, Guillermo and Frossard, Pascal",
        "On the Benefits of Knowledge Distillation for Adversarial Robustness",
        2022,
        eprint="2203.07159",
    ),
    Paper(
        "mueller2023certified",
        'M{\\"u}ller, Mark Niklas and Eckert, Franziska and Fischer, Marc and Vechev, Martin',
        "Certified Training: Small Boxes are All You Need",
        2023,
        _ICLR,
        "2210.04871",
    ),
    Paper(
        "vaishnavi2022accelerating",
        "Vaishnavi, Pratik and Eykholt, Kevin and Rahmati, Amir",
        "Accelerating Certified Robustness Training via Knowledge Transfer",
        2022,
        _NEURIPS,
        "2210.14283",
    ),
    Paper(
        "chen2023releasing",
        "Chen, Junxi and Dong, Junhao and Xie, Xiaohua and Lai, Jianhuang",
        "Releasing Inequality Phenomenon in $\\ell_\\infty$-norm Adversarial Training via Input Gradient Distillation",
        2023,
        eprint="2305.09305",
    ),
    Paper(
        "depalma2024expressive",
        "De Palma, Alessandro and Bunel, Rudy and Dvijotham, Krishnamurthy and Kumar, M. Pawan and "
        "Stanforth, Robert and Lomuscio, Alessio",
        "Expressive Losses for Verified Robustness via Convex Combinations",
        2024,
        _ICLR,
        "2305.13991",
    ),
    Paper(
        "wu2023advfunmatch",
        "Wu, Zihui and Gao, Haichang and Zhou, Bingqian and Wang, Ping",
        "{AdvFunMatch}: When Consistent Teaching Meets Adversarial Robustness",
        2023,
        eprint="2305.14700",
    ),
    Paper(
        "fazlyab2023certified",
        "Fazlyab, Mahyar and Entesari, Taha and Roy, Aniket and Chellappa, Rama",
        "Certified Robustness via Dynamic Margin Maximization and Improved {L}ipschitz Regularization",
        2023,
        _NEURIPS,
        "2310.00116",
    ),
    Paper(
        "lee2025indirect",
        "Lee, Hongsin and Cho, Seungju and Kim, Changick",
        "Indirect Gradient Matching for Adversarial Robust Distillation",
        2025,
        _ICLR,
        "2312.03286",
    ),
    Paper(
        "xu2024compositional",
        "Xu, Yuezhu and Sivaranjani, S.",
        "Compositional Estimation of {L}ipschitz Constants for Deep Neural Networks",
        2024,
        eprint="2404.04375",
    ),
)
#: Papers without an arXiv number, by their name in ``paper`` fields.
PUBLISHED = {
    "Zhao et al., ECCV 2022": Paper(
        "zhao2022enhanced",
        "Zhao, Shiji and Yu, Jie and Sun, Zhenlong and Zhang, Bo and Wei, Xingxing",
        "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation",
        2022,
        "European Conference on Computer Vision",
    ),
    "Huang et al., CVPR 2023": Paper(
        "huang2023boosting",
        "Huang, Bo and Chen, Mingyang and Wang, Yi and Lu, Junda and Cheng, Minhao and Wang, Wei",
        "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation",
        2023,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    ),
}
_BY_NUMBER = {paper.eprint: paper for paper in PAPERS}
#: The second engine of bound propagation, as files name it, and its paper.
_ENGINE, _ENGINE_PAPER = "auto-lirpa", "arXiv 2002.12920"


def citations(certificates: Certificates) -> list[str]:
    """Write the entries of certkd, of the methods that ran, of auto-LiRPA if it ran, and of the training objective.

    Raises:
        InputError: a method is unknown.
    """
    named = [find(rows.name).paper for rows in certificates]
    named += [_ENGINE_PAPER for rows in certificates if _second_engine_ran(rows.attributes)]
    named.append(str(certificates.attributes.get("objective_paper", "")))
    entries = [entry for text in named for entry in entries_of(text)]
    return [_certkd(str(certificates.attributes.get("certkd_version", ""))), *dict.fromkeys(entries)]


def entries_of(paper: str) -> list[str]:
    """Write the entries of the papers that a method's or an objective's ``paper`` names.

    An arXiv number without an entry in the table becomes one with the number alone.
    """
    listed = [PUBLISHED[name].bibtex() for name in PUBLISHED if name in paper]
    return listed + [_numbered(number) for number in _NUMBER.findall(paper)]


def _numbered(number: str) -> str:
    if number in _BY_NUMBER:
        return _BY_NUMBER[number].bibtex()
    return _entry("misc", f"arxiv{number}", {"eprint": number, "archivePrefix": "arXiv"})


def _second_engine_ran(attributes: Mapping[str, Any]) -> bool:
    """Return whether auto-LiRPA bounded samples of a method, as its engine or to cross-check some."""
    checked = str(attributes.get("cross_check", ""))
    return attributes.get("engine") == _ENGINE or bool(re.match(rf"[1-9]\d* samples .* by {_ENGINE}", checked))


def _certkd(version: str) -> str:
    title = "certkd: robust knowledge distillation, with certificates"
    return _entry("misc", "certkd", {"title": title, "author": "{certkd developers}", "note": f"Version {version}"})


def _entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
