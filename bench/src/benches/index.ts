import type { Bench } from '../bench.ts';
import { crowdBench, throughputBench } from './crowd.ts';
import { deltaBench } from './delta.ts';
import { toolBench, turnBench } from './turn.ts';

/** Every bench, in the order in which they run. */
export const benches: readonly Bench[] = [turnBench, toolBench, deltaBench, crowdBench, throughputBench];
