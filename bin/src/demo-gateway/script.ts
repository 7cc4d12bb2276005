/** What one model step of the scripted model does. */
export interface Step {
  /** Text of this step, word by word; `wordMs` between two words. */
  readonly text: string;
  readonly wordMs: number;
  /** What it thinks before that; null when it does not. */
  readonly thinking: string | null;
  readonly call: { readonly name: string; readonly input: Record<string, unknown> } | null;
  /** Answer this HTTP status instead. */
  readonly errorStatus: number | null;
  /** Stop after the text because the model refuses, for this reason. */
  readonly refusal: string | null;
}

const PLAIN: Step = { text: '', wordMs: 0, thinking: null, call: null, errorStatus: null, refusal: null };

interface Marker {
  readonly kind: string;
  readonly body: string;
}

const KINDS = /(RUN|WRITE|ASK|SLOW|THINK|ERR|REFUSE)\[/g;
const USAGE =
  'I am the demo model: a script, not a language model. Write RUN[shell command], WRITE[path|text], ASK[custom tool], SLOW[number of words], THINK[thoughts], ERR[HTTP status] or REFUSE[reason]; several markers in one message run in order. Set LITELLM_GATEWAY_URL to use real models.';

/** The markers of a message in order; a marker's body may hold balanced brackets. */
export function markersOf(text: string): Marker[] {
  const markers: Marker[] = [];
  KINDS.lastIndex = 0;
  for (let match = KINDS.exec(text); match !== null; match = KINDS.exec(text)) {
    let depth = 1;
    let end = KINDS.lastIndex;
    for (; end < text.length && depth > 0; end++) {
      if (text[end] === '[') depth += 1;
      else if (text[end] === ']') depth -= 1;
    }
    if (depth > 0) break;
    markers.push({ kind: match[1] ?? '', body: text.slice(KINDS.lastIndex, end - 1) });
    KINDS.lastIndex = end;
  }
  return markers;
}

const words = (count: number): string => Array.from({ length: count }, (_, i) => `word${i + 1}`).join(' ');
const clampCount = (body: string): number => Math.min(10_000, Math.max(1, Math.trunc(Number(body)) || 1));

/** The steps that a message asks for. Text alone would end the turn, so SLOW and THINK join the call that follows them. */
function stepsOf(text: string): Step[] {
  const steps: Step[] = [];
  let slow = '';
  let thinking: string | null = null;
  const add = (step: Partial<Step>): void => {
    steps.push({ ...PLAIN, text: slow, wordMs: slow === '' ? 0 : 100, thinking, ...step });
    [slow, thinking] = ['', null];
  };
  for (const { kind, body } of markersOf(text)) {
    if (kind === 'RUN') add({ call: { name: 'bash', input: { command: body } } });
    else if (kind === 'WRITE') {
      const bar = body.indexOf('|');
      const [path, content] = bar === -1 ? [body, ''] : [body.slice(0, bar), body.slice(bar + 1)];
      add({ call: { name: 'write', input: { file_path: path, content } } });
    } else if (kind === 'ASK') add({ call: { name: body.trim(), input: { question: text.slice(0, 200) } } });
    else if (kind === 'THINK') thinking = body;
    else if (kind === 'REFUSE') add({ refusal: body });
    else if (kind === 'ERR') add({ errorStatus: Math.min(599, Math.max(400, Math.trunc(Number(body)) || 500)) });
    else slow = [slow, words(clampCount(body))].filter((part) => part !== '').join(' ');
  }
  if (slow !== '') add({});
  else if (thinking !== null) add({ text: 'I thought about it.' });
  return steps;
}

/**
 * The step that follows in a conversation.
 *
 * @param prompt the newest message of the user
 * @param done how many steps the model has taken since
 * @param lastResult the newest tool result, if any
 */
export function nextStep(prompt: string, done: number, lastResult: string | null): Step {
  const steps = stepsOf(prompt);
  const step = steps[done];
  if (step !== undefined) return step;
  if (steps.length === 0) return { ...PLAIN, text: `You said: ${prompt.slice(0, 2_000)}\n\n${USAGE}` };
  return {
    ...PLAIN,
    text: lastResult === null ? 'Done.' : `Done. The last result was:\n${lastResult.slice(0, 2_000)}`,
  };
}
