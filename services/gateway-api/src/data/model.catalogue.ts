import { AppError } from '@holdfast/contracts';
import { z } from 'zod';

const BELIEVE_MS = 30_000;
const ASK_MS = 3_000;
const answerSchema = z.object({
  data: z.array(z.object({ id: z.string(), created: z.number().nullish() })).max(10_000),
});

export interface Model {
  readonly id: string;
  readonly type: 'model';
  readonly display_name: string;
  readonly created_at: string;
}

/** The models that the model gateway lists, believed for half a minute. */
export class ModelCatalogue {
  readonly #url: string;
  readonly #apiKey: string;
  #known: { models: Model[]; untilMs: number } | null = null;

  constructor(options: { baseUrl: string; apiKey: string }) {
    this.#url = `${options.baseUrl.replace(/\/+$/, '').replace(/\/v1$/, '')}/v1/models`;
    this.#apiKey = options.apiKey;
  }

  /** @throws AppError `model.gateway-unavailable` when it cannot be asked. */
  async list(): Promise<Model[]> {
    if (this.#known !== null && this.#known.untilMs > Date.now()) return this.#known.models;
    try {
      const response = await fetch(this.#url, {
        headers: this.#apiKey === '' ? {} : { authorization: `Bearer ${this.#apiKey}` },
        signal: AbortSignal.timeout(ASK_MS),
      });
      if (!response.ok)
        throw new AppError(
          'unavailable',
          'model.gateway-unavailable',
          `The model gateway answered HTTP ${response.status}.`,
        );
      const { data } = answerSchema.parse(await response.json());
      const models = data.map(
        ({ id, created }): Model => ({
          id,
          type: 'model',
          display_name: id,
          created_at: new Date((created ?? 0) * 1000).toISOString(),
        }),
      );
      this.#known = { models, untilMs: Date.now() + BELIEVE_MS };
      return models;
    } catch (cause) {
      if (cause instanceof AppError) throw cause;
      throw new AppError(
        'unavailable',
        'model.gateway-unavailable',
        'The model gateway could not be asked for its models.',
        { cause },
      );
    }
  }

  /**
   * Refuses a model that the gateway does not list, where it could be asked and lists no wildcard; else the turn tells.
   * @throws AppError `model.unknown`, which names those it has.
   */
  async require(id: string | undefined): Promise<void> {
    if (id === undefined) return;
    const models = await this.list().catch(() => null);
    if (models === null || models.some((model) => model.id === id || model.id.includes('*'))) return;
    const names = models.map((model) => model.id);
    const shown = names.slice(0, 20).join(', ') + (names.length > 20 ? `, and ${names.length - 20} more` : '');
    throw new AppError(
      'invalid',
      'model.unknown',
      `The model gateway has no model "${id.slice(0, 256)}". It has: ${shown || 'none'}.`,
    );
  }
}
