import { TimelinePage } from '../../../../../components/timeline-page.tsx';

export const metadata = { title: 'Timeline' };

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return <TimelinePage key={id} id={id} />;
}
