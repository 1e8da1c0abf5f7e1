"A model that is made and run in a second, and what its folder says of it."

TINY = dict(
    name='tpavi',
    backbone='pvt_v2_b0',
    backbone_options=dict(embed_dims=[16, 32, 40, 64], depths=[1, 1, 1, 1]),
    audio='vggish_small',
    dim=16,
    gamma=1.0,
    num_classes=3,
)
RECORD = dict(size=[32, 32], length=5, setting='avss', classes=['background', 'dog', 'violin'])
