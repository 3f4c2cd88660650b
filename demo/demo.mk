# The stages of `make demo`, two at a time. Each is a target with its prerequisites, and prints to a file of
# its own in $(RUN)/logs; a stage that is done is not run again: remove $(RUN) to train anew.
#   make demo QUICK=1   a few clips and steps, in some minutes: shows that everything works, and no learning
#   make demo SEED=89   another seed of the trainings; the world stays the same

PY = .venv/bin/python
SEED = 88
JOBS = 2
QUICK =
DATA = _data/demo$(if $(QUICK),-quick)
RUN = _snapshot/demo$(if $(QUICK),-quick)$(if $(filter-out 88,$(SEED)),-$(SEED))

CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
HALF := $(shell expr \( $(CORES) + 1 \) / 2)
# threads that wait asleep: where another process wants the cores, waiting awake is many times slower
SHARED := export OMP_NUM_THREADS=$(HALF) OMP_WAIT_POLICY=PASSIVE;

ENCODER := $(RUN)/swin_demo.pth
TASKS := demo-retrieval demo-action demo-qa demo-fib
SCRIPT_demo-retrieval := main_retrieval_tsv.py
SCRIPT_demo-action := main_qamc_tsv.py
SCRIPT_demo-qa := main_qaoe_tsv_mlm_head.py
SCRIPT_demo-fib := main_qaoe_tsv_lsmdc_fib.py

SETS := train:16 val:16 test:16 names:8 names_val:8 # and the frames kept of a clip
SIZES := $(if $(QUICK),--train=64 --val=16 --test=16 --names=128 --names-val=32)
STEPS := $(if $(QUICK),--max_steps 4)
CORPORA := --train_yaml '{"demo": "$(DATA)/train.yaml"}' --val_yaml '{"demo": "$(DATA)/val.yaml"}'
BERT := --txt_backbone $(DATA)/bert --fusion_encoder $(DATA)/bert --tokenizer $(DATA)/bert
COMMON := $(BERT) --vis_backbone_path $(ENCODER) --seed $(SEED) $(STEPS)

PRETRAINED = $$(ls -d $(RUN)/pretraining/_pretrain_* | tail -n 1)
NAME = $(subst /,_,$(basename $(patsubst $(DATA)/%,%,$(patsubst $(RUN)/%,%,$@))))
LOG = $(RUN)/logs/$(NAME).log

# $(call stage,COMMANDS): the target exists once all of them have succeeded
define stage
@mkdir -p $(@D) $(dir $(LOG))
@echo "$(NAME): started, prints to $(LOG)"
@(set -e; $(1)) >$(LOG) 2>&1; test $$? = 0 || \
{ tail -n 30 $(LOG); echo "$(NAME) failed: all that it printed is in $(LOG)"; exit 1; }
@touch $@
@echo "$(NAME): done"
endef

.PHONY: demo-stages
demo-stages: $(RUN)/pretraining.done $(TASKS:%=$(RUN)/encoder_only/%.done) \
	$(TASKS:%=$(RUN)/pretrained/%.done) $(RUN)/pictures.done

$(DATA)/world.done: demo/make.py demo/world.py demo/questions.py demo/retrieval.py
	$(call stage,$(PY) -m demo.make --output $(DATA) $(SIZES); \
	for set in $(SETS); do $(PY) _tools/make_tsv.py $(DATA)/$${set%:*}.csv --output $(DATA) \
	--name $${set%:*} --frames $${set#*:} --overwrite; done; \
	$(PY) -m demo.questions --data $(DATA); $(PY) -m demo.retrieval --data $(DATA))

$(RUN)/check.done: $(DATA)/world.done
	$(call stage,$(PY) _tools/check_data.py _args/demo-pretrain.json $(CORPORA) --data_dir $(DATA) $(COMMON); \
	$(PY) _tools/check_data.py $(TASKS:%=_args/%.json) --sample 100 --data_dir $(DATA) $(COMMON))

$(ENCODER): $(RUN)/check.done demo/backbone.py
	$(call stage,$(PY) -m demo.backbone --data $(DATA) --output $@ $(if $(QUICK),--steps 5))

$(RUN)/pretraining.done: $(ENCODER) _args/demo-pretrain.json
	$(call stage,$(SHARED) $(PY) main_pretrain_yaml.py --config _args/demo-pretrain.json $(CORPORA) \
	--feature_teacher $(ENCODER) $(COMMON) --path_output $(@D)/pretraining)

$(RUN)/pictures.done: $(RUN)/pretraining.done
	$(call stage,$(SHARED) $(PY) -m demo.scores $(PRETRAINED); \
	$(PY) _tools/show_mvm.py --checkpoint $(PRETRAINED) --rows 2 --columns 1)

# a task, from pre-training and from the video encoder alone; retrieval also ranks the test split
TASK = --config _args/$*.json --data_dir $(DATA) $(COMMON)
define task
$(call stage,$(SHARED) $(PY) $(SCRIPT_$*) $(TASK) --path_output $(@D) --path_ckpt "$(1)" \
$(if $(filter demo-retrieval,$*),; $(PY) eval_retrieval_tsv.py $(TASK) --path_output $(@D)/ranking \
--path_ckpt $$(ls -d $(@D)/_$*_* | tail -n 1)))
endef

$(RUN)/encoder_only/%.done: $(ENCODER) _args/%.json
	$(call task,)

$(RUN)/pretrained/%.done: $(RUN)/pretraining.done _args/%.json
	$(call task,$(PRETRAINED))
