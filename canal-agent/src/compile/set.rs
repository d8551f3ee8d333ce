//! A policy set: all that decides about one endpoint address in one direction, for any peer.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use canal_common::policy::key;

use super::{
    area::{self, Open, Piece, SrcPorts},
    budget::{OverBudget, Pieces},
    predicate::{Class, Predicate},
    rules::{Step, Verb},
    verdict::{Decision, Final, Row, RuleId},
};

/// The steps of one policy or profile; many sets share one.
#[derive(Debug)]
pub(super) struct Block {
    name: String,
    steps: Vec<Step>,
    /// Why it has no steps: no set with it can be enforced.
    refused: Option<OverBudget>,
    hash: u64,
}

impl Block {
    pub(super) fn new(name: String, steps: Result<Vec<Step>, OverBudget>) -> Self {
        // A fixed key: equal content has an equal hash in every process.
        let mut hasher = DefaultHasher::new();
        (&name, &steps).hash(&mut hasher);
        let (steps, refused) = steps.map_or_else(|error| (Vec::new(), Some(error)), |steps| (steps, None));
        Self { name, steps, refused, hash: hasher.finish() }
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.name == other.name
            && self.refused == other.refused
            && self.steps == other.steps
    }
}

impl Eq for Block {}

/// Blocks in order, and what happens to packets that meet their end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    Deny,
    /// On to the next stage.
    Pass,
    /// The last stage: nobody is left to pass to, so Pass denies as well.
    Profiles,
}

/// Equal sets give equal rows for every class.
pub struct PolicySet {
    hash: u64,
    stages: Vec<Stage>,
    plan: Vec<Plan>,
    predicates: BTreeSet<Predicate>,
    /// Their positions, by which the plan names them.
    ids: HashMap<Predicate, usize>,
}

/// The steps of a stage, found by what the peer is.
struct Plan {
    steps: Vec<PlannedStep>,
    /// Steps that ask for nothing.
    always: Vec<usize>,
    /// For each predicate, the steps that need it or another one of their list.
    needing: HashMap<usize, Vec<usize>>,
}

/// Where a step stands in its stage, and its questions as positions among the set's predicates.
struct PlannedStep {
    block: usize,
    step: usize,
    any: Vec<Vec<usize>>,
    none: Vec<usize>,
    holes: Vec<usize>,
}

impl PolicySet {
    pub(super) fn new(stages: Vec<Stage>) -> Self {
        let steps = || stages.iter().flat_map(|stage| &stage.blocks).flat_map(|block| &block.steps);
        let predicates: BTreeSet<Predicate> =
            steps().flat_map(|step| step.peer.predicates()).cloned().collect();
        let ids: HashMap<Predicate, usize> = predicates.iter().cloned().zip(0..).collect();
        let plan = stages.iter().map(|stage| Plan::new(stage, &ids)).collect();
        let mut hasher = DefaultHasher::new();
        for stage in &stages {
            stage.end.hash(&mut hasher);
            for block in &stage.blocks {
                block.hash.hash(&mut hasher);
            }
        }
        Self { hash: hasher.finish(), stages, plan, predicates, ids }
    }

    /// Verdicts for peers of this class.
    pub fn row(&self, class: &Class) -> Result<Row, OverBudget> {
        self.row_of(&self.aspect(class))
    }

    /// What of the class makes a difference here.
    pub fn aspect(&self, class: &Class) -> Aspect {
        let mut held: Vec<usize> =
            class.predicates().iter().filter_map(|p| self.ids.get(p)).copied().collect();
        held.sort_unstable();
        Aspect(held.into())
    }

    /// Verdicts for peers of every class with this aspect.
    pub fn row_of(&self, Aspect(held): &Aspect) -> Result<Row, OverBudget> {
        if let Some(refused) = self.blocks().find_map(|block| block.refused.as_ref()) {
            return Err(refused.clone());
        }
        let mut course = Course::default();
        let mut open = Open::everything();
        for (stage, plan) in self.stages.iter().zip(&self.plan) {
            open = stage.walk(plan, held, open, &mut course)?;
            if open.is_empty() {
                break;
            }
        }
        open.into_pieces().try_for_each(|piece| course.decide(piece, &Final::DENY))?;
        assemble(course.finish()?)
    }

    fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.stages.iter().flat_map(|stage| &stage.blocks)
    }

    /// What the rows depend on.
    pub fn predicates(&self) -> &BTreeSet<Predicate> {
        &self.predicates
    }

    /// Policies, then (where they are reached) profiles, in order of evaluation.
    pub fn policies(&self) -> Vec<String> {
        self.blocks().map(|block| block.name.clone()).collect()
    }

    /// Every rule that a row may name.
    pub fn rules(&self) -> BTreeSet<Arc<RuleId>> {
        self.blocks().flat_map(|block| &block.steps).filter_map(|step| step.rule.clone()).collect()
    }
}

/// The predicates of one set that hold for some class, by position: classes that agree in it have equal rows there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Aspect(Box<[usize]>);

/// Keys from the first to before the second with some source ports, and what becomes of packets there.
type Decided = (u32, u32, (SrcPorts, Final));

/// What has become of packets so far.
#[derive(Default)]
struct Course {
    decided: Vec<Decided>,
    decided_pieces: Pieces,
    /// What met a rule that takes note.
    noted: Vec<(Piece, Arc<RuleId>)>,
    noted_pieces: Pieces,
}

/// What lies over a stretch of keys.
enum Layer {
    Decided(SrcPorts, Final),
    /// The number is its place in order.
    Noted(usize, SrcPorts, Arc<RuleId>),
}

impl Course {
    fn decide(&mut self, piece: Piece, verdict: &Final) -> Result<(), OverBudget> {
        self.decided_pieces.take(piece.src.weight())?;
        self.decided.push((piece.low, piece.high, (piece.src, verdict.clone())));
        Ok(())
    }

    fn note(&mut self, piece: Piece, rule: &Arc<RuleId>) -> Result<(), OverBudget> {
        self.noted_pieces.take(piece.src.weight())?;
        self.noted.push((piece, rule.clone()));
        Ok(())
    }

    /// Each verdict with the notes that were taken of it.
    fn finish(self) -> Result<Vec<Decided>, OverBudget> {
        if self.noted.is_empty() {
            return Ok(self.decided);
        }
        let decided = self
            .decided
            .into_iter()
            .map(|(low, high, (src, verdict))| (low, high, Layer::Decided(src, verdict)));
        let noted = (0..)
            .zip(self.noted)
            .map(|(at, (Piece { low, high, src }, rule))| (low, high, Layer::Noted(at, src, rule)));
        let mut finished = Vec::new();
        let mut pieces = Pieces::default();
        area::sweep(decided.chain(noted).collect(), |low, high, layers| {
            let mut notes: Vec<(usize, &SrcPorts, &Arc<RuleId>)> = Vec::new();
            for layer in layers {
                if let Layer::Noted(at, src, rule) = layer {
                    notes.push((*at, src, rule));
                }
            }
            notes.sort_unstable_by_key(|(at, ..)| *at);
            for layer in layers {
                let Layer::Decided(src, verdict) = layer else { continue };
                for (src, verdict) in annotate(src, verdict, &notes, &mut pieces)? {
                    finished.push((low, high, (src, verdict)));
                }
            }
            Ok(())
        })?;
        Ok(finished)
    }
}

/// A verdict, divided by which of the notes (in order) were taken where.
fn annotate(
    src: &SrcPorts,
    verdict: &Final,
    notes: &[(usize, &SrcPorts, &Arc<RuleId>)],
    pieces: &mut Pieces,
) -> Result<Vec<(SrcPorts, Final)>, OverBudget> {
    pieces.take(src.weight())?;
    let mut divided = vec![(src.clone(), verdict.clone())];
    for (_, noted, rule) in notes {
        for at in 0..divided.len() {
            let (src, verdict) = &mut divided[at];
            let met = src.intersect(noted);
            // One rule may be several steps, as with a named port and its number, and a packet may meet them all.
            if met.is_empty() || verdict.logs.last() == Some(rule) {
                continue;
            }
            pieces.give_back(src.weight());
            pieces.take(1 + met.weight())?;
            let beside = src.without(noted);
            if !beside.is_empty() {
                pieces.take(beside.weight() + verdict.logs.len())?;
                let verdict = verdict.clone();
                divided.push((beside, verdict));
            }
            let (src, verdict) = &mut divided[at];
            *src = met;
            verdict.logs.push((*rule).clone());
        }
    }
    Ok(divided)
}

impl Stage {
    /// No packet goes on from here.
    pub(super) fn is_last(&self) -> bool {
        let passes = |block: &Arc<Block>| block.steps.iter().any(|step| step.verb == Verb::Pass);
        self.end != End::Pass && !self.blocks.iter().any(passes)
    }

    fn walk(
        &self,
        plan: &Plan,
        held: &[usize],
        mut open: Open,
        course: &mut Course,
    ) -> Result<Open, OverBudget> {
        let mut passed = Vec::new();
        let mut passed_pieces = Pieces::default();
        let mut pass = |piece: Piece| {
            passed_pieces.take(piece.src.weight())?;
            passed.push(piece);
            Ok(())
        };
        for planned in plan.candidates(held) {
            if open.is_empty() {
                break;
            }
            let step = &self.blocks[planned.block].steps[planned.step];
            let holes =
                step.peer.holes.iter().zip(&planned.holes).filter(|(_, id)| held.binary_search(id).is_ok());
            let mut cut = None;
            for ((_, hole), _) in holes {
                hole.cut(cut.get_or_insert_with(|| step.area.clone()));
            }
            let area = cut.as_ref().unwrap_or(&step.area);
            if let (Verb::Log, Some(rule)) = (step.verb, &step.rule) {
                open.meeting(area).try_for_each(|piece| course.note(piece, rule))?;
            } else if step.verb == Verb::Pass && self.end != End::Profiles {
                open.take(area, &mut pass)?;
            } else {
                let verdict =
                    Final { allow: step.verb == Verb::Allow, rule: step.rule.clone(), logs: Vec::new() };
                open.take(area, |piece| course.decide(piece, &verdict))?;
            }
        }
        match self.end {
            End::Pass => open.into_pieces().try_for_each(pass)?,
            End::Deny | End::Profiles => {
                open.into_pieces().try_for_each(|piece| course.decide(piece, &Final::DENY))?;
            }
        }
        Open::from_pieces(passed)
    }
}

impl Plan {
    fn new(stage: &Stage, ids: &HashMap<Predicate, usize>) -> Self {
        let mut plan = Self { steps: Vec::new(), always: Vec::new(), needing: HashMap::new() };
        for (block, content) in stage.blocks.iter().enumerate() {
            for (step, content) in content.steps.iter().enumerate() {
                let at = plan.steps.len();
                let peer = &content.peer;
                let any: Vec<Vec<usize>> =
                    peer.any.iter().map(|list| list.iter().map(|p| ids[p]).collect()).collect();
                match any.iter().min_by_key(|list| list.len()) {
                    None => plan.always.push(at),
                    Some(list) => {
                        for id in list {
                            plan.needing.entry(*id).or_default().push(at);
                        }
                    }
                }
                plan.steps.push(PlannedStep {
                    block,
                    step,
                    any,
                    none: peer.none.iter().map(|p| ids[p]).collect(),
                    holes: peer.holes.iter().map(|(p, _)| ids[p]).collect(),
                });
            }
        }
        plan
    }

    /// Steps whose questions are all answered as they want, in order.
    fn candidates(&self, held: &[usize]) -> impl Iterator<Item = &PlannedStep> {
        let needing = held.iter().filter_map(|id| self.needing.get(id)).flatten();
        let mut found: Vec<usize> = needing.chain(&self.always).copied().collect();
        found.sort_unstable();
        found.dedup();
        let holds = |id: &usize| held.binary_search(id).is_ok();
        found.into_iter().map(|at| &self.steps[at]).filter(move |step| {
            step.any.iter().all(|list| list.iter().any(holds)) && !step.none.iter().any(holds)
        })
    }
}

fn assemble(decided: Vec<Decided>) -> Result<Row, OverBudget> {
    let mut row: Vec<(u32, Decision)> = Vec::new();
    let mut pieces = Pieces::default();
    area::sweep(decided, |low, _, here| {
        let mut by_src = area::by_src_port(here);
        let decision = if by_src.len() == 1 {
            Decision::Final(by_src.remove(0).1)
        } else {
            // Steps about source ports are about one protocol, and so is this stretch.
            let protocol = low & !0xffff;
            let bound = |port| if port == 0 { 0 } else { protocol | port };
            Decision::BySrcPort(by_src.into_iter().map(|(port, verdict)| (bound(port), verdict)).collect())
        };
        if row.last().is_none_or(|(_, last)| *last != decision) {
            pieces.take(decision.weight())?;
            row.push((low, decision));
        }
        Ok(())
    })?;
    debug_assert_eq!(row.first().map(|(bound, _)| *bound), Some(key(0, 0)));
    Ok(Row(row))
}

impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.stages == other.stages
    }
}

impl Eq for PolicySet {}

impl Hash for PolicySet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet").field("policies", &self.policies()).finish_non_exhaustive()
    }
}
