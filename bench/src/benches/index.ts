import type { Bench } from '../bench.ts';
import { batchBench, singleBench } from './append.ts';
import { checkpointBench } from './checkpoint.ts';
import { crowdBench, throughputBench } from './crowd.ts';
import { clientsBench, deliveryBench } from './delivery.ts';
import { deltaBench } from './delta.ts';
import { interruptBench, killBench } from './fault.ts';
import { memoryBench, startUpBench } from './footprint.ts';
import { listBench, replayBench } from './read.ts';
import { burstBench, claimBench, coldBench, idleBench, wakeBench } from './sandbox.ts';
import { toolBench, turnBench } from './turn.ts';

/** Every bench, in the order in which they run: memory is taken of a fresh platform, kills come last. */
export const benches: readonly Bench[] = [
  startUpBench,
  memoryBench,
  turnBench,
  toolBench,
  deltaBench,
  interruptBench,
  crowdBench,
  throughputBench,
  deliveryBench,
  clientsBench,
  listBench,
  replayBench,
  batchBench,
  singleBench,
  checkpointBench,
  killBench,
  idleBench,
  claimBench,
  coldBench,
  burstBench,
  wakeBench,
];
